package convert

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"dray/internal/estargz"
	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/repo"
	"dray/internal/testkit"
)

// multi writes an index: two platforms, one of them in a nested index, an
// attestation, an artifact, and one that refers to it.
func multi(t *testing.T, layout *ocidir.Layout) (amd, arm, attestation, artifact oci.Descriptor) {
	t.Helper()
	image := func(arch string, seed uint64) oci.Descriptor {
		return testkit.Image(t).Platform(oci.Platform{OS: "linux", Architecture: arch}).
			Layer(testkit.File("common", text(9, 20_000))).Layer(testkit.File("arch", text(seed, 20_000))).Write(layout, "").Manifest
	}
	amd, arm = image("amd64", 1), image("arm64", 2)
	attestation = testkit.Attestation(t, layout, amd)
	artifact = testkit.Artifact(t, layout, "", "application/x-sbom", nil, "sbom")
	testkit.Artifact(t, layout, "", "application/x-signature", &artifact, "signature of the sbom")
	testkit.Artifact(t, layout, "", "application/x-signature", &amd, "signature of the image")
	nested := testkit.Index(t, layout, "", arm)
	index := oci.Index{
		SchemaVersion: 2, MediaType: oci.MediaTypeIndex, Annotations: map[string]string{"kept": "yes"},
		Manifests: []oci.Descriptor{amd, attestation, {MediaType: nested.MediaType, Digest: nested.Digest, Size: nested.Size}, artifact},
	}
	raw, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	raw = bytes.Replace(raw, []byte(`{`), []byte(`{"unknown":{"field":1},`), 1)
	testkit.PutRaw(t, layout, "v1", oci.MediaTypeIndex, raw)
	return amd, arm, attestation, artifact
}

func rootIndex(t *testing.T, r *repo.Repository) (*oci.Index, string) {
	t.Helper()
	_, raw, err := r.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	document, err := oci.DecodeDocument(raw, "")
	if err != nil || document.Index == nil {
		t.Fatalf("no index: %v", err)
	}
	return document.Index, string(raw)
}

func TestIndexes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	amd, arm, attestation, artifact := multi(t, testkit.LayoutAt(t, dir))
	t.Run("all platforms", func(t *testing.T) {
		t.Parallel()
		target := place(t, t.TempDir(), "v1", true)
		result := mustRun(t, place(t, dir, "v1", false), target, Options{AllPlatforms: true})
		index, raw := rootIndex(t, target)
		if len(index.Manifests) != 4 || index.Annotations["kept"] != "yes" || !strings.Contains(raw, `"unknown":{"field":1}`) {
			t.Fatalf("index is %s", raw)
		}
		if len(result.Images) != 2 || len(result.Kept) != 2 || result.Dropped != nil {
			t.Errorf("result is %+v", result)
		}
		converted := index.Manifests[0]
		if converted.Digest == amd.Digest || converted.Platform.Architecture != "amd64" {
			t.Errorf("the first is %+v", converted)
		}
		checkLayers(t, target, load(t, target, converted.Digest), estargz.EStargz, nil)
		if got := index.Manifests[1]; got.Digest != attestation.Digest || got.Annotations[annotationReferenceDigest] != string(converted.Digest) {
			t.Errorf("the attestation is %+v", got)
		}
		_, raw2, err := target.Resolve(t.Context(), "", index.Manifests[2].Digest)
		if err != nil {
			t.Fatal(err)
		}
		nested, err := oci.DecodeDocument(raw2, "")
		if err != nil {
			t.Fatal(err)
		}
		checkLayers(t, target, load(t, target, nested.Index.Manifests[0].Digest), estargz.EStargz, nil)
		if index.Manifests[3].Digest != artifact.Digest {
			t.Errorf("the artifact is %+v", index.Manifests[3])
		}
		list, err := target.Referrers(t.Context(), artifact.Digest, "")
		if err != nil || len(list) != 1 {
			t.Errorf("the artifact has the referrers %v, %v", list, err)
		}
		if len(result.LeftBehind) != 1 || result.LeftBehind[0].ArtifactType != "application/x-signature" {
			t.Errorf("left behind: %v", result.LeftBehind)
		}
		// What both images have is one job.
		if a, b := result.Images[0].Layers[0], result.Images[1].Layers[0]; a.Target != b.Target || a.Target == "" {
			t.Errorf("the common layer is %+v and %+v", a, b)
		}
	})
	for _, test := range []struct {
		name      string
		platforms []oci.Platform
		kept      []oci.Digest // of the source
		dropped   int
	}{
		{"one platform", []oci.Platform{{OS: "linux", Architecture: "amd64"}}, []oci.Digest{amd.Digest, attestation.Digest, artifact.Digest}, 2},
		{"the nested one", []oci.Platform{{OS: "linux", Architecture: "arm64"}}, []oci.Digest{arm.Digest, artifact.Digest}, 2},
		{"both", []oci.Platform{{OS: "linux", Architecture: "arm64"}, {OS: "linux", Architecture: "amd64"}}, []oci.Digest{amd.Digest, attestation.Digest, arm.Digest, artifact.Digest}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			target := place(t, t.TempDir(), "v1", true)
			result := mustRun(t, place(t, dir, "v1", false), target, Options{Platforms: test.platforms})
			var got []oci.Digest
			for _, i := range result.Images {
				got = append(got, i.Source)
			}
			for _, d := range result.Kept {
				got = append(got, d.Digest)
			}
			slices.Sort(got)
			slices.Sort(test.kept)
			if !slices.Equal(got, test.kept) || len(result.Dropped) != test.dropped {
				t.Errorf("kept %v, dropped %d; want %v, %d", got, len(result.Dropped), test.kept, test.dropped)
			}
			index, _ := rootIndex(t, target)
			for _, d := range index.Manifests {
				if _, _, err := target.Resolve(t.Context(), "", d.Digest); err != nil {
					t.Error(err)
				}
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		target := place(t, t.TempDir(), "v1", true)
		_, err := Run(t.Context(), place(t, dir, "v1", false), target, Options{Platforms: []oci.Platform{{OS: "plan9", Architecture: "mips"}}})
		if !errors.Is(err, oci.ErrPlatform) || !strings.Contains(err.Error(), "plan9/mips") {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestRegistries(t *testing.T) {
	t.Parallel()
	for name, host := range map[string]string{
		"dray's":   testkit.Registry(t, t.TempDir()).Host,
		"docker's": testkit.DockerRegistry(t),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			multi(t, testkit.LayoutAt(t, dir))
			source := remote(t, "http://"+host+"/source:v1")
			if _, err := Copy(t.Context(), place(t, dir, "v1", false), source, CopyOptions{}); err != nil {
				t.Fatal(err)
			}
			target := remote(t, "http://"+host+"/target:v1")
			mustRun(t, source, target, Options{AllPlatforms: true, Form: Form{Format: estargz.EStargzExternal, KeepDiffID: true}})
			index, _ := rootIndex(t, target)
			_, raw, err := target.Resolve(t.Context(), "v1-esgztoc", "")
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(raw, []byte(load(t, target, index.Manifests[0].Digest).manifest.Layers[0].Digest)) {
				t.Errorf("the image of TOCs is %s", raw)
			}
		})
	}
}
