package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func descriptorJSON(mediaType string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":7}`, mediaType, emptySHA256)
}

func manifestJSON(mediaType string) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, mediaType, descriptorJSON(MediaTypeConfig), descriptorJSON(MediaTypeLayerGz))
}

func indexJSON(mediaType string) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, mediaType, descriptorJSON(MediaTypeManifest))
}

func TestDecodeDocument(t *testing.T) {
	t.Parallel()
	bareManifest := strings.Replace(manifestJSON(""), `"mediaType":"",`, "", 1)
	bareIndex := strings.Replace(indexJSON(""), `"mediaType":"",`, "", 1)
	for name, c := range map[string]struct {
		raw, mediaType, want string
		index                bool
	}{
		"OCI manifest":                 {manifestJSON(MediaTypeManifest), MediaTypeManifest, MediaTypeManifest, false},
		"Docker manifest":              {manifestJSON(MediaTypeDockerManifest), MediaTypeDockerManifest, MediaTypeDockerManifest, false},
		"its own type":                 {manifestJSON(MediaTypeDockerManifest), "", MediaTypeDockerManifest, false},
		"a server that says nothing":   {manifestJSON(MediaTypeManifest), "text/plain", MediaTypeManifest, false},
		"no type at all":               {bareManifest, "", MediaTypeManifest, false},
		"type of the server only":      {bareManifest, MediaTypeDockerManifest, MediaTypeDockerManifest, false},
		"OCI index":                    {indexJSON(MediaTypeIndex), MediaTypeIndex, MediaTypeIndex, true},
		"Docker list":                  {indexJSON(MediaTypeDockerList), "", MediaTypeDockerList, true},
		"index without type":           {bareIndex, "", MediaTypeIndex, true},
		"space around":                 {" \n" + indexJSON(MediaTypeIndex) + "\n\t", MediaTypeIndex, MediaTypeIndex, true},
		"unknown fields":               {strings.Replace(bareIndex, "{", `{"x-new":{"a":[1]},`, 1), "", MediaTypeIndex, true},
		"manifest without layers":      {`{"schemaVersion":2,"config":` + descriptorJSON(MediaTypeConfig) + `}`, "", MediaTypeManifest, false},
		"index without any manifests":  {`{"schemaVersion":2,"manifests":[]}`, "", MediaTypeIndex, true},
		"artifact with an empty layer": {strings.Replace(manifestJSON(MediaTypeManifest), MediaTypeLayerGz, MediaTypeEmpty, 1), "", MediaTypeManifest, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := DecodeDocument([]byte(c.raw), c.mediaType)
			if err != nil {
				t.Fatal(err)
			}
			if got.MediaType != c.want || (got.Index != nil) != c.index || (got.Manifest != nil) == c.index {
				t.Errorf("got %+v, want type %s, index %v", got, c.want, c.index)
			}
		})
	}
}

func TestDecodeDocumentRefuses(t *testing.T) {
	t.Parallel()
	manifest, index := manifestJSON(MediaTypeManifest), indexJSON(MediaTypeIndex)
	for name, c := range map[string]struct{ raw, mediaType string }{
		"nothing":                      {"", ""},
		"HTML":                         {"<html>", MediaTypeManifest},
		"a string":                     {`"x"`, ""},
		"a list":                       {`[]`, ""},
		"null":                         {`null`, ""},
		"cut":                          {manifest[:len(manifest)-1], ""},
		"two values":                   {manifest + manifest, ""},
		"a brace too many":             {manifest + "}", ""},
		"a bracket too many":           {manifest + "]", ""},
		"both":                         {strings.Replace(manifest, "{", `{"manifests":[],`, 1), ""},
		"neither":                      {`{"schemaVersion":2}`, ""},
		"index where a manifest is":    {index, MediaTypeManifest},
		"manifest where an index is":   {manifest, MediaTypeIndex},
		"own type contradicts":         {manifestJSON(MediaTypeIndex), MediaTypeManifest},
		"own type of index differs":    {indexJSON(MediaTypeManifest), MediaTypeIndex},
		"schema 1":                     {`{"schemaVersion":1,"fsLayers":[]}`, ""},
		"schema 1 by type":             {manifest, mediaTypeDockerSchema1Signed},
		"version 1":                    {strings.Replace(manifest, `"schemaVersion":2`, `"schemaVersion":1`, 1), ""},
		"version of index":             {strings.Replace(index, `"schemaVersion":2`, `"schemaVersion":3`, 1), ""},
		"no config":                    {`{"schemaVersion":2,"layers":[]}`, ""},
		"bad digest":                   {strings.Replace(manifest, "sha256:e3", "sha256:../", 1), ""},
		"bad digest in index":          {strings.Replace(index, "sha256:e3", "md5:", 1), ""},
		"layer without digest":         {`{"schemaVersion":2,"config":` + descriptorJSON("x") + `,"layers":[{}]}`, ""},
		"null layer":                   {`{"schemaVersion":2,"config":` + descriptorJSON("x") + `,"layers":[null]}`, ""},
		"negative size":                {strings.Replace(manifest, `"size":7`, `"size":-1`, 1), ""},
		"negative size in index":       {strings.Replace(index, `"size":7`, `"size":-7`, 1), ""},
		"size beyond 64 bits":          {strings.Replace(manifest, `"size":7`, `"size":99999999999999999999`, 1), ""},
		"fraction":                     {strings.Replace(manifest, `"size":7`, `"size":7.5`, 1), ""},
		"deeper than anyone needs":     {strings.Repeat(`{"manifests":[`, 100000), ""},
		"neither type nor a known one": {manifestJSON("application/x"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got, err := DecodeDocument([]byte(c.raw), c.mediaType); !errors.Is(err, ErrManifest) {
				t.Errorf("got %+v, %v, want ErrManifest", got, err)
			}
		})
	}
}

func TestDecodeImage(t *testing.T) {
	t.Parallel()
	raw := `{"architecture":"arm64","os":"linux","variant":"v8","config":{"User":"1:2","Env":["A=b"],"Cmd":["sh"],"ExposedPorts":{"80/tcp":{}}},
		"rootfs":{"type":"layers","diff_ids":["` + emptySHA256 + `"]},"history":[{"created":"2024-01-02T03:04:05.678Z","empty_layer":true}]}`
	got, err := DecodeImage([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	if got.Variant != "v8" || got.Config.User != "1:2" || len(got.Config.ExposedPorts) != 1 || !got.History[0].EmptyLayer {
		t.Errorf("got %+v", got)
	}
	if diff := cmp.Diff(got.RootFS.DiffIDs, []DiffID{emptySHA256}); diff != "" {
		t.Error(diff)
	}
	for name, raw := range map[string]string{
		"null diff ID":  `{"rootfs":{"diff_ids":[null]}}`,
		"bad diff ID":   `{"rootfs":{"diff_ids":["sha256:0"]}}`,
		"bad time":      `{"created":"yesterday"}`,
		"not an object": `[]`,
		"more":          `{}{}`,
		"brace":         `{}}`,
	} {
		if got, err := DecodeImage([]byte(raw)); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: got %+v, %v, want ErrManifest", name, got, err)
		}
	}
}

func TestMediaTypes(t *testing.T) {
	t.Parallel()
	for _, mediaType := range ManifestMediaTypes() {
		if IsIndex(mediaType) == IsManifest(mediaType) || IsLayer(mediaType) {
			t.Errorf("%s is an index %v, a manifest %v, a layer %v", mediaType, IsIndex(mediaType), IsManifest(mediaType), IsLayer(mediaType))
		}
	}
	for _, mediaType := range []string{
		MediaTypeLayer, MediaTypeLayerGz, MediaTypeLayerZst, MediaTypeDockerLayer, MediaTypeDockerLayerGz, MediaTypeDockerLayerZst, MediaTypeDockerForeign,
		MediaTypeLayerGz + "+encrypted", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
	} {
		if !IsLayer(mediaType) || IsEncrypted(mediaType) != strings.HasSuffix(mediaType, "+encrypted") {
			t.Errorf("%s is a layer %v, encrypted %v", mediaType, IsLayer(mediaType), IsEncrypted(mediaType))
		}
	}
	for _, mediaType := range []string{"", MediaTypeConfig, MediaTypeEmpty, "application/vnd.in-toto+json"} {
		if IsLayer(mediaType) {
			t.Errorf("%q is a layer", mediaType)
		}
	}
}

// What is taken has digests that can be file names, and survives being written.
func FuzzDecodeDocument(f *testing.F) {
	for _, raw := range []string{manifestJSON(MediaTypeManifest), indexJSON(MediaTypeIndex), `{}`, `{"schemaVersion":2,"manifests":null}`, `null`} {
		for _, mediaType := range []string{"", MediaTypeManifest, MediaTypeDockerList} {
			f.Add([]byte(raw), mediaType)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte, mediaType string) {
		_, _ = DecodeImage(raw)
		document, err := DecodeDocument(raw, mediaType)
		if err != nil {
			if !errors.Is(err, ErrManifest) {
				t.Errorf("got %v", err)
			}
			return
		}
		var descriptors []Descriptor
		var written []byte
		switch {
		case document.Index != nil && document.Manifest == nil && IsIndex(document.MediaType):
			descriptors = document.Index.Manifests
			written, err = json.Marshal(document.Index)
		case document.Manifest != nil && document.Index == nil && IsManifest(document.MediaType):
			descriptors = append(document.Manifest.Layers, document.Manifest.Config)
			written, err = json.Marshal(document.Manifest)
		default:
			t.Fatalf("got %+v", document)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range descriptors {
			if _, err := ParseDigest(string(d.Digest)); err != nil || d.Size < 0 {
				t.Errorf("descriptor %+v: %v", d, err)
			}
		}
		if document.Index != nil && document.Index.Manifests == nil || document.Manifest != nil && document.Manifest.Layers == nil {
			return // null is written as null, which is not a list
		}
		if _, err := DecodeDocument(written, document.MediaType); err != nil {
			t.Errorf("written as %s: %v", written, err)
		}
	})
}
