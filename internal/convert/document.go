package convert

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"dray/internal/estargz"
	"dray/internal/oci"
)

// edit returns a JSON object with some fields set; a nil value removes one. The
// others, whatever they are, stay as they are. The same input gives the same bytes.
func edit(raw []byte, fields map[string]any) ([]byte, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(raw, &object); err != nil {
		return nil, fmt.Errorf("edit document: %w: %w", oci.ErrManifest, err)
	}
	for name, value := range fields {
		for other := range object { // which Go's decoder, and not every other, takes for name
			if other != name && strings.EqualFold(other, name) {
				delete(object, other)
			}
		}
		if value == nil {
			delete(object, name)
			continue
		}
		text, err := marshal(value)
		if err != nil {
			return nil, err
		}
		object[name] = text
	}
	return marshal(object)
}

// marshal encodes without making HTML harmless, which nothing here is.
func marshal(v any) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("edit document: %w", err)
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

// isDocker tells whether a media type is one of Docker's.
func isDocker(mediaType string) bool { return strings.HasPrefix(mediaType, "application/vnd.docker.") }

// ociType returns OCI's media type for one of Docker's; others stay.
func ociType(mediaType string) string {
	switch mediaType {
	case oci.MediaTypeDockerList:
		return oci.MediaTypeIndex
	case oci.MediaTypeDockerManifest:
		return oci.MediaTypeManifest
	case oci.MediaTypeDockerConfig:
		return oci.MediaTypeConfig
	case oci.MediaTypeDockerLayer:
		return oci.MediaTypeLayer
	case oci.MediaTypeDockerLayerGz:
		return oci.MediaTypeLayerGz
	case oci.MediaTypeDockerLayerZst:
		return oci.MediaTypeLayerZst
	case oci.MediaTypeDockerForeign:
		return "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
	}
	return mediaType
}

// layerType returns the media type of a layer of the form, in a manifest of
// Docker's or OCI's.
func (f *Form) layerType(docker bool) string {
	switch {
	case f.Uncompressed && docker:
		return oci.MediaTypeDockerLayer
	case f.Uncompressed:
		return oci.MediaTypeLayer
	case f.zstd():
		return oci.MediaTypeLayerZst
	case docker:
		return oci.MediaTypeDockerLayerGz
	}
	return oci.MediaTypeLayerGz
}

// zstd tells whether layers of the form are compressed with zstd.
func (f *Form) zstd() bool {
	return !f.Uncompressed && (f.Format == estargz.ZstdChunked || f.Format == estargz.ZstdChunkedContainerd)
}

// isForeign tells whether a layer is kept elsewhere, and so stays as it is.
func isForeign(d oci.Descriptor) bool {
	return len(d.URLs) > 0 || strings.Contains(d.MediaType, ".foreign.") || strings.Contains(d.MediaType, ".nondistributable.")
}

// isImage tells whether a manifest is that of an image: a config of that type and
// nothing but layers. Attestations have the former and not the latter.
func isImage(m *oci.Manifest) bool {
	if m.ArtifactType != "" || m.Config.MediaType != oci.MediaTypeConfig && m.Config.MediaType != oci.MediaTypeDockerConfig {
		return false
	}
	for _, l := range m.Layers {
		if !oci.IsLayer(l.MediaType) {
			return false
		}
	}
	return true
}

// Annotations of what BuildKit puts beside an image in its index.
const (
	annotationReferenceType   = "vnd.docker.reference.type"
	annotationReferenceDigest = "vnd.docker.reference.digest"
	attestationManifest       = "attestation-manifest"
)

// attests returns the digest of the image that d, an entry of an index, speaks of.
func attests(d oci.Descriptor) (oci.Digest, bool) {
	if d.Annotations[annotationReferenceType] != attestationManifest {
		return "", false
	}
	digest, err := oci.ParseDigest(d.Annotations[annotationReferenceDigest])
	return digest, err == nil
}

// annotated returns annotations without those of seekable layers, and with more.
func annotated(old, more map[string]string) map[string]string {
	all := map[string]string{}
	for k, v := range old {
		if !estargz.IsAnnotation(k) {
			all[k] = v
		}
	}
	maps.Copy(all, more)
	if len(all) == 0 {
		return nil
	}
	return all
}
