package dray_test

import (
	"archive/tar"
	"bytes"
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

// Mount an image, write to its root file system, and unmount it: the image has
// not changed. Mounting needs root; an ordinary user's program starts under
// "dray unshare". This example has no "Output:" for that reason; TestExamples runs it.
func ExampleClient_Mount() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "dray-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	layout, rootfs := filepath.Join(dir, "layout"), filepath.Join(dir, "rootfs")
	if err := writeLayout(layout, file{"greeting", 0o644, []byte("hello")}); err != nil {
		log.Fatal(err)
	}
	client, err := dray.New(ctx, dray.Options{Store: filepath.Join(dir, "store"), Platform: "linux/amd64"})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = client.Close() }()

	for range 2 {
		mounted, err := client.Mount(ctx, "local://"+layout+":latest", rootfs, dray.MountOptions{})
		if err != nil {
			log.Fatal(err)
		}
		path := filepath.Join(mounted.Target, "greeting")
		content, err := os.ReadFile(path)
		fmt.Println(string(content), err)
		if err := os.WriteFile(path, []byte("changed"), 0o600); err != nil {
			log.Fatal(err)
		}
		if err := client.Unmount(ctx, rootfs); err != nil {
			log.Fatal(err)
		}
	}
}

// Run a program of an image as a container, with runc or crun. The exit code is
// the program's; an error means that it did not run to its end. This example has
// no "Output:" because it needs root and busybox; TestExamples runs it.
func ExampleClient_Run() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "dray-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	busybox, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		log.Fatal(err)
	}
	layout := filepath.Join(dir, "layout")
	if err := writeLayout(layout, file{"busybox", 0o755, busybox}); err != nil {
		log.Fatal(err)
	}
	client, err := dray.New(ctx, dray.Options{Store: filepath.Join(dir, "store"), Platform: "linux/amd64"})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = client.Close() }()

	code, err := client.Run(ctx, "local://"+layout+":latest", dray.RunOptions{
		Spec:   dray.SpecOptions{Args: []string{"/busybox", "sh", "-c", "echo from inside; exit 3"}},
		Stdout: os.Stdout, Stderr: os.Stderr,
	})
	fmt.Println(code, err)
}

// file is what a layer consists of.
type file struct {
	name    string
	mode    int64
	content []byte
}

// writeLayout makes an OCI image layout with an image of one layer, or of none if
// there are no files.
func writeLayout(dir string, files ...file) error {
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
	layers, diffIDs := []any{}, []any{}
	if len(files) > 0 {
		layer, err := writeTar(files)
		if err != nil {
			return err
		}
		digest := fmt.Sprintf("%x", sha256.Sum256(layer))
		if err := os.WriteFile(filepath.Join(blobs, digest), layer, 0o600); err != nil {
			return err
		}
		layers = append(layers, map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "sha256:" + digest, "size": len(layer)})
		diffIDs = append(diffIDs, "sha256:"+digest)
	}
	config, err := blob("application/vnd.oci.image.config.v1+json", map[string]any{
		"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		return err
	}
	manifest, err := blob("application/vnd.oci.image.manifest.v1+json", map[string]any{
		"schemaVersion": 2, "config": config, "layers": layers,
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

func writeTar(files []file) ([]byte, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return layer.Bytes(), err
}
