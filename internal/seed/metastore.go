package seed

import (
	"errors"
	"fmt"
	"io/fs"

	"dray/internal/metastore"
	"dray/internal/oci"
	"dray/internal/store"
	"dray/internal/stream"
)

// A work directory of image-rs has layers and configurations. It has no manifests, nor
// what one could be made of again: the sizes of the layers' blobs and their media types
// are nowhere. So whoever asks for an image has to have its manifest from elsewhere.

// metaStore returns the document of a work directory, as it is now; of what is none, an
// empty one.
func (s *Seed) metaStore(from files) (*metastore.Document, error) {
	p, err := from.open(metastore.FileName)
	if errors.Is(err, fs.ErrNotExist) {
		return &metastore.Document{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.Close() }()
	id, err := store.IdentifyFile(p.File)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.document != nil && s.documentID == id && p.alone {
		return s.document, nil
	}
	if p.size > maxManifestBytes {
		return nil, problem("%s: it has %d bytes, the limit is %d", p.Name(), p.size, maxManifestBytes)
	}
	raw, err := stream.ReadAll(p.reader(), maxManifestBytes)
	if err != nil {
		return nil, problem("read %s: %w", p.Name(), err)
	}
	document, err := metastore.Decode(raw)
	if err != nil {
		return nil, problem("read %s: %w", p.Name(), err)
	}
	s.document, s.documentID = document, id
	return document, nil
}

// metaConfig returns a configuration that a work directory has, if the bytes that the
// digest is of can be found.
func (s *Seed) metaConfig(from files, d oci.Digest) (raw []byte, ok bool) {
	document, err := s.metaStore(from)
	if err != nil {
		return nil, false
	}
	for i := range document.Images {
		if document.Images[i].ID == d {
			return document.Images[i].RawConfig()
		}
	}
	return nil, false
}

// WorkDirs tells whether some of the seeds are work directories of image-rs: they have no
// manifests.
func (s *Set) WorkDirs() bool {
	for _, one := range s.Seeds() {
		if from, err := one.files(); err == nil {
			if document, err := one.metaStore(from); err == nil && len(document.Images) > 0 {
				return true
			}
		}
	}
	return false
}

// checkMetaStore tells whether the document can be used.
func (s *Seed) checkMetaStore(from files) error {
	if _, err := s.metaStore(from); err != nil {
		return fmt.Errorf("open seed %s: %w", s.path, err)
	}
	return nil
}
