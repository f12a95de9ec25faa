package dray_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"dray"
)

// Convert an image of an OCI image layout into an archive, without a store.
func ExampleImages_Convert() {
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

	images, err := dray.NewImages(dray.Options{Platform: "linux/amd64"})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = images.Close() }()
	archive := filepath.Join(dir, "seekable.tar")
	result, err := images.Convert(ctx, "local://"+layout+":latest", "oci-archive:"+archive+":v1", dray.ConvertOptions{
		Form: dray.FormEStargz, OCI: true, Memory: "none",
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(result.Images), "image,", len(result.Images[0].Layers), "layers")
	// Output: 1 image, 0 layers
}
