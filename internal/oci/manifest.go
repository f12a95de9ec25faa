package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// ErrManifest reports a document that is not the manifest, index or config that
// it claims to be.
var ErrManifest = errors.New("invalid manifest")

// Descriptor points to content (image-spec, descriptor.md).
type Descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       Digest            `json:"digest"`
	Size         int64             `json:"size"` // bytes, as stored
	URLs         []string          `json:"urls,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	Platform     *Platform         `json:"platform,omitempty"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Data         []byte            `json:"data,omitempty"`
}

// Index is an OCI index or a Docker manifest list.
type Index struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType,omitempty"`
	ArtifactType  string            `json:"artifactType,omitempty"`
	Manifests     []Descriptor      `json:"manifests"`
	Subject       *Descriptor       `json:"subject,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// Manifest is an OCI image manifest or a Docker schema 2 manifest.
type Manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType,omitempty"`
	ArtifactType  string            `json:"artifactType,omitempty"`
	Config        Descriptor        `json:"config"`
	Layers        []Descriptor      `json:"layers"` // bottom first
	Subject       *Descriptor       `json:"subject,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// Image is an image's configuration (image-spec, config.md).
type Image struct {
	Created      *time.Time  `json:"created,omitempty"`
	Author       string      `json:"author,omitempty"`
	Architecture string      `json:"architecture"`
	Variant      string      `json:"variant,omitempty"`
	OS           string      `json:"os"`
	OSVersion    string      `json:"os.version,omitempty"`
	OSFeatures   []string    `json:"os.features,omitempty"`
	Config       ImageConfig `json:"config"`
	RootFS       RootFS      `json:"rootfs"`
	History      []History   `json:"history,omitempty"`
}

// ImageConfig is how the image wants to be run.
type ImageConfig struct {
	User         string              `json:"User,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   []string            `json:"Entrypoint,omitempty"`
	Cmd          []string            `json:"Cmd,omitempty"`
	Volumes      map[string]struct{} `json:"Volumes,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	Labels       map[string]string   `json:"Labels,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`
	ArgsEscaped  bool                `json:"ArgsEscaped,omitempty"`
}

// RootFS names the layers by their uncompressed content, bottom first.
type RootFS struct {
	Type    string   `json:"type"`
	DiffIDs []DiffID `json:"diff_ids"`
}

// History tells how one layer, or a change without one, came to be.
type History struct {
	Created    *time.Time `json:"created,omitempty"`
	CreatedBy  string     `json:"created_by,omitempty"`
	Author     string     `json:"author,omitempty"`
	Comment    string     `json:"comment,omitempty"`
	EmptyLayer bool       `json:"empty_layer,omitempty"`
}

// Document is a decoded manifest or index: exactly one of the two is set.
type Document struct {
	MediaType string
	Manifest  *Manifest
	Index     *Index
}

// DecodeDocument decodes a manifest or an index. mediaType is what the registry
// or the descriptor said; "" leaves it to the document. A document that is both,
// or whose own mediaType contradicts, is refused: two readers could see two
// images in it. Errors wrap [ErrManifest].
func DecodeDocument(raw []byte, mediaType string) (*Document, error) {
	var probe struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Layers    json.RawMessage `json:"layers"`
		Config    json.RawMessage `json:"config"`
		FSLayers  json.RawMessage `json:"fsLayers"`
	}
	if err := decode(raw, &probe); err != nil {
		return nil, err
	}
	if mediaType == "" || !IsIndex(mediaType) && !IsManifest(mediaType) {
		if schema1(mediaType) || probe.FSLayers != nil {
			return nil, fmt.Errorf("decode manifest: Docker schema 1 has no digests that can be verified; push the image again with a current tool: %w", ErrManifest)
		}
		mediaType = probe.MediaType
	}
	isIndex := probe.Manifests != nil
	isManifest := probe.Layers != nil || probe.Config != nil
	switch {
	case isIndex && isManifest:
		return nil, fmt.Errorf("decode manifest: document has both manifests and layers: %w", ErrManifest)
	case isIndex:
		return decodeIndex(raw, mediaType, probe.MediaType)
	case isManifest:
		return decodeManifest(raw, mediaType, probe.MediaType)
	}
	return nil, fmt.Errorf("decode manifest: document has neither manifests nor layers: %w", ErrManifest)
}

func schema1(mediaType string) bool {
	return mediaType == mediaTypeDockerSchema1 || mediaType == mediaTypeDockerSchema1Signed
}

func decodeIndex(raw []byte, mediaType, own string) (*Document, error) {
	if mediaType == "" {
		mediaType = MediaTypeIndex
	}
	if !IsIndex(mediaType) || own != "" && !IsIndex(own) {
		return nil, fmt.Errorf("decode index: media type is %q: %w", mediaType, ErrManifest)
	}
	var index Index
	if err := decode(raw, &index); err != nil {
		return nil, err
	}
	if index.SchemaVersion != 2 {
		return nil, fmt.Errorf("decode index: schemaVersion is %d, want 2: %w", index.SchemaVersion, ErrManifest)
	}
	for i := range index.Manifests {
		if err := index.Manifests[i].check(); err != nil {
			return nil, fmt.Errorf("decode index: manifests[%d]: %w", i, err)
		}
	}
	return &Document{MediaType: mediaType, Index: &index}, nil
}

func decodeManifest(raw []byte, mediaType, own string) (*Document, error) {
	if mediaType == "" {
		mediaType = MediaTypeManifest
	}
	if !IsManifest(mediaType) || own != "" && !IsManifest(own) {
		return nil, fmt.Errorf("decode manifest: media type is %q: %w", mediaType, ErrManifest)
	}
	var manifest Manifest
	if err := decode(raw, &manifest); err != nil {
		return nil, err
	}
	if manifest.SchemaVersion != 2 {
		return nil, fmt.Errorf("decode manifest: schemaVersion is %d, want 2: %w", manifest.SchemaVersion, ErrManifest)
	}
	if err := manifest.Config.check(); err != nil {
		return nil, fmt.Errorf("decode manifest: config: %w", err)
	}
	for i := range manifest.Layers {
		if err := manifest.Layers[i].check(); err != nil {
			return nil, fmt.Errorf("decode manifest: layers[%d]: %w", i, err)
		}
	}
	return &Document{MediaType: mediaType, Manifest: &manifest}, nil
}

// DecodeImage decodes an image configuration. Errors wrap [ErrManifest].
func DecodeImage(raw []byte) (*Image, error) {
	var image Image
	if err := decode(raw, &image); err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	for i, id := range image.RootFS.DiffIDs {
		if id == "" {
			return nil, fmt.Errorf("image config: diff_ids[%d] is empty: %w", i, ErrManifest)
		}
	}
	return &image, nil
}

func (d *Descriptor) check() error {
	if d.Digest == "" {
		return fmt.Errorf("descriptor has no digest: %w", ErrManifest)
	}
	if d.Size < 0 {
		return fmt.Errorf("descriptor %s has size %d: %w", d.Digest, d.Size, ErrManifest)
	}
	return nil
}

// decode unmarshals one JSON value and nothing after it.
func decode(raw []byte, into any) error {
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("decode JSON: %w: %w", ErrManifest, err)
	}
	return nil
}
