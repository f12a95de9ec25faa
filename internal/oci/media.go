package oci

import "strings"

// Media types that dray reads and writes.
const (
	MediaTypeIndex    = "application/vnd.oci.image.index.v1+json"
	MediaTypeManifest = "application/vnd.oci.image.manifest.v1+json"
	MediaTypeConfig   = "application/vnd.oci.image.config.v1+json"
	MediaTypeLayer    = "application/vnd.oci.image.layer.v1.tar"
	MediaTypeLayerGz  = "application/vnd.oci.image.layer.v1.tar+gzip"
	MediaTypeLayerZst = "application/vnd.oci.image.layer.v1.tar+zstd"
	MediaTypeEmpty    = "application/vnd.oci.empty.v1+json"

	MediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerConfig   = "application/vnd.docker.container.image.v1+json"
	MediaTypeDockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
	MediaTypeDockerLayerGz  = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	MediaTypeDockerLayerZst = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	MediaTypeDockerForeign  = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

	mediaTypeDockerSchema1       = "application/vnd.docker.distribution.manifest.v1+json"
	mediaTypeDockerSchema1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// ManifestMediaTypes returns what an Accept header for manifests names, most
// wanted first.
func ManifestMediaTypes() []string {
	return []string{MediaTypeIndex, MediaTypeManifest, MediaTypeDockerList, MediaTypeDockerManifest}
}

// IsIndex tells whether mediaType is that of an index or a manifest list.
func IsIndex(mediaType string) bool {
	return mediaType == MediaTypeIndex || mediaType == MediaTypeDockerList
}

// IsManifest tells whether mediaType is that of an image manifest.
func IsManifest(mediaType string) bool {
	return mediaType == MediaTypeManifest || mediaType == MediaTypeDockerManifest
}

// IsLayer tells whether mediaType says that the blob is a tar, in any of the
// compressions and with any of the suffixes in use. The content decides how it
// is unpacked: a type is a hint (docs/formats.md, "Layers").
func IsLayer(mediaType string) bool {
	return strings.HasPrefix(mediaType, "application/vnd.oci.image.layer.v1.tar") ||
		strings.HasPrefix(mediaType, "application/vnd.oci.image.layer.nondistributable.v1.tar") ||
		strings.HasPrefix(mediaType, "application/vnd.docker.image.rootfs.diff.tar") ||
		strings.HasPrefix(mediaType, "application/vnd.docker.image.rootfs.foreign.diff.tar")
}

// IsEncrypted tells whether mediaType is that of a layer encrypted by ocicrypt.
func IsEncrypted(mediaType string) bool { return strings.HasSuffix(mediaType, "+encrypted") }
