package metastore_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dray/internal/metastore"
	"dray/internal/oci"
)

// document004 is the document that image-rs's author showed as a template.
func document004(tb testing.TB) []byte {
	tb.Helper()
	raw, err := os.ReadFile("testdata/document004.json")
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

func TestDecodeTemplate(t *testing.T) {
	t.Parallel()
	got, err := metastore.Decode(document004(t))
	if err != nil {
		t.Fatal(err)
	}
	const blob = "sha256:1b930d010525941c1d56ec53b97bd057a67ae1865eebf042686d2a2d18271ced"
	want := &metastore.Document{
		Prefix: "/tmp/.tmpYioDI2",
		Images: []metastore.Image{{
			ID:        "sha256:fce289e99eb9bca977dae136fbe2a82b6b7d4c372474c9235adc1741675f587e",
			Manifest:  "sha256:92c7f9c92844bbbb5d0a101b22f7c2a7949e40f8ea90c8b3bc396879d95e899a",
			Reference: "mcr.microsoft.com/hello-world",
			Config:    got.Images[0].Config,
			Layers:    []oci.Digest{blob},
		}},
		Layers: []metastore.Layer{{
			Decoder: metastore.Gzip,
			Blob:    blob,
			DiffID:  "sha256:af0b15c8625bb1938f1d7b17081031f649fd14e6b233688eea3c5483994a66a3",
			Name:    "sha256_1b930d010525941c1d56ec53b97bd057a67ae1865eebf042686d2a2d18271ced",
		}},
		Snapshots: map[string]uint64{},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !bytes.Contains(got.Images[0].Config, []byte(`"Cmd"`)) {
		t.Errorf("config is %s", got.Images[0].Config)
	}
}

// What is read is written again, byte for byte but for white space.
func TestEncodeTemplate(t *testing.T) {
	t.Parallel()
	raw := document004(t)
	document, err := metastore.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	got, err := document.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	if err := json.Compact(&want, raw); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.String(), string(got)); diff != "" {
		t.Error(diff)
	}
}

func TestDecodeBadInput(t *testing.T) {
	t.Parallel()
	const (
		blob   = "sha256:1b930d010525941c1d56ec53b97bd057a67ae1865eebf042686d2a2d18271ced"
		diffID = "sha256:af0b15c8625bb1938f1d7b17081031f649fd14e6b233688eea3c5483994a66a3"
		path   = "/tmp/.tmpYioDI2/layers/sha256_1b930d010525941c1d56ec53b97bd057a67ae1865eebf042686d2a2d18271ced"
	)
	other := `"` + strings.Replace(blob, "1b93", "2b93", 1) + `": {"decoder": "Gzip", "encrypted": false, "compressed_digest": "` +
		strings.Replace(blob, "1b93", "2b93", 1) + `", "uncompressed_digest": "` + strings.Replace(diffID, "af0b", "bf0b", 1) + `", "store_path": `
	for _, tt := range []struct {
		name     string
		old, new string // what is replaced in document 004, everywhere
		want     string
	}{
		{"empty", "", "", "the document is missing"},
		{"not JSON", "{", "<", "invalid character"},
		{"cut", `"snapshot_db": {}`, "", "invalid character"},
		{"more behind it", `"snapshot_db": {}` + "\n}", `"snapshot_db": {}}{}`, "after top-level value"},
		{"an array", `{`, `[`, "invalid character"},
		{"no image_db", `"image_db"`, `"images"`, "image_db: it is missing"},
		{"no layer_db", `"layer_db"`, `"Layer_DB"`, "layer_db: it is missing"},
		{"no snapshot_db", `"snapshot_db"`, `"x"`, "snapshot_db: it is missing"},
		{"null", `"snapshot_db": {}`, `"snapshot_db": null`, "snapshot_db: it is null"},
		{"snapshots of another type", `"snapshot_db": {}`, `"snapshot_db": {"a": "b"}`, "snapshot_db"},
		{"key twice", `"signed": false`, `"signed": false, "signed": true`, `key "signed" stands there twice`},
		{"layer twice", `"layer_db": {`, `"layer_db": {"` + blob + `": {},`, "stands there twice"},
		{"image twice", `"image_db": {`, `"image_db": {"sha256:fce289e99eb9bca977dae136fbe2a82b6b7d4c372474c9235adc1741675f587e": {},`, "stands there twice"},
		{"key of another", `"id": "sha256:f`, `"id": "sha256:e`, "id is sha256:ece2"},
		{"field missing", `"encrypted": false,`, "", "encrypted is missing"},
		{"field in other case", `"encrypted"`, `"Encrypted"`, "encrypted is missing"},
		{"field of another type", `"encrypted": false`, `"encrypted": "no"`, "encrypted: json"},
		{"unknown decoder", `"Gzip"`, `"Brotli"`, `decoder: "Brotli" is none of Uncompressed, Gzip and Zstd`},
		{"unknown algorithm", `"sha256:af0b`, `"blake3:af0b`, "algorithm must be sha256, sha384 or sha512"},
		{"digest too short", diffID + `"`, `sha256:af0b"`, "want 64 lower-case hex digits"},
		{"relative path", path, "layers/0", "is not absolute"},
		{"dots in the path", path, "/a/layers/../../etc", `has ".", ".."`},
		{"no layers directory", path, "/etc/shadow", "is not WORKDIR/layers/NAME"},
		{"the root", path, "/", "is not WORKDIR/layers/NAME"},
		{"layers itself", path, "/a/layers", "is not WORKDIR/layers/NAME"},
		{"deeper", path, "/a/layers/0/1", "is not WORKDIR/layers/NAME"},
		{"NUL in the path", path, `/a/layers/\u0000`, "has a NUL"},
		{"huge path", path, "/" + strings.Repeat("a", 5000) + "/layers/0", "a path has at most 4096"},
		{"out of the directory", `"layer_db": {`, `"layer_db": {` + other + `"/etc/layers/0"},`, "leads out of"},
		{"two layers in one place", `"layer_db": {`, `"layer_db": {` + other + `"` + path + `"},`, "is said to be layer"},
		{
			"layer told differently", `"signed": false,` + "\n" + `            "layer_metas": [` + "\n" + `                {` + "\n" + `                    "decoder": "Gzip"`,
			`"signed": false, "layer_metas": [ { "decoder": "Zstd"`, "stands there twice, differently",
		},
		{"config missing", `"image_config"`, `"config"`, "image_config is missing"},
		{"deep", `"history": [`, `"history": [` + strings.Repeat("[", 200), "more than 128 objects"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			raw := document004(t)
			if tt.name == "empty" {
				raw = nil
			} else {
				changed := bytes.ReplaceAll(raw, []byte(tt.old), []byte(tt.new))
				if bytes.Equal(changed, raw) {
					t.Fatal("nothing was replaced")
				}
				raw = changed
			}
			_, err := metastore.Decode(raw)
			if !errors.Is(err, metastore.ErrFormat) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want ErrFormat with %q", err, tt.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(document004(f))
	f.Add([]byte(`{"image_db":{},"layer_db":{},"snapshot_db":{"a":1}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		document, err := metastore.Decode(raw)
		if err != nil {
			if !errors.Is(err, metastore.ErrFormat) {
				t.Fatalf("%v is no ErrFormat", err)
			}
			return
		}
		again, err := document.Encode()
		if err != nil {
			t.Fatal(err)
		}
		same, err := metastore.Decode(again)
		if err != nil {
			t.Fatalf("%v in %s", err, again)
		}
		for i := range document.Images { // white space is not kept
			document.Images[i].Config, same.Images[i].Config = nil, nil
		}
		if diff := cmp.Diff(document, same); diff != "" {
			t.Error(diff)
		}
	})
}
