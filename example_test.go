package dray_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"dray"
)

// Pull an image from an OCI image layout, and look at what was proved.
func ExampleClient_Pull() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "dray-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	layout := filepath.Join(dir, "layout")
	if err := writeLayout(layout); err != nil {
		log.Fatal(err)
	}

	client, err := dray.New(ctx, dray.Options{Store: filepath.Join(dir, "store"), Platform: "linux/amd64"})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	image, err := client.Pull(ctx, "local://"+layout+":latest", dray.PullOptions{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(image.Platform, "with", len(image.Evidence.Layers), "layers")
	fmt.Println("from the network:", image.Evidence.NetworkBytes, "bytes")
	// Output:
	// linux/amd64 with 0 layers
	// from the network: 0 bytes
}

// Errors tell their kind, which is the exit code of the command.
func ExampleKindOf() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "dray-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	client, err := dray.New(ctx, dray.Options{Store: filepath.Join(dir, "store"), Platform: "linux/amd64"})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	_, err = client.Pull(ctx, "docker.io/library/nginx", dray.PullOptions{Offline: true})
	fmt.Println(dray.KindOf(err) == dray.KindNotFound)
	_, err = client.Pull(ctx, "docker.io/library/nginx", dray.PullOptions{RequireDigest: true})
	fmt.Println(dray.KindOf(err) == dray.KindDenied)
	// Output:
	// true
	// true
}

// writeLayout makes an OCI image layout with an image that has no layers.
func writeLayout(dir string) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o700); err != nil {
		return err
	}
	blob := func(mediaType string, v any) (map[string]any, error) {
		raw, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		digest := sha256.Sum256(raw)
		return map[string]any{"mediaType": mediaType, "digest": fmt.Sprintf("sha256:%x", digest), "size": len(raw)},
			os.WriteFile(filepath.Join(blobs, fmt.Sprintf("%x", digest)), raw, 0o600)
	}
	config, err := blob("application/vnd.oci.image.config.v1+json", map[string]any{
		"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{}},
	})
	if err != nil {
		return err
	}
	manifest, err := blob("application/vnd.oci.image.manifest.v1+json", map[string]any{
		"schemaVersion": 2, "config": config, "layers": []string{},
	})
	if err != nil {
		return err
	}
	manifest["annotations"] = map[string]string{"org.opencontainers.image.ref.name": "latest"}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []any{manifest}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), index, 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600)
}
