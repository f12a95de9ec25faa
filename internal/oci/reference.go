package oci

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// ErrReference reports text that is not an image reference.
var ErrReference = errors.New("invalid reference")

// Transport says where a reference points.
type Transport uint8

// Transports of a reference.
const (
	Registry   Transport = iota // name[:tag][@digest], https, or http with the prefix http://
	LayoutDir                   // local://PATH[:tag][@digest], an OCI image layout directory
	OCIArchive                  // oci-archive:PATH[:tag][@digest], the same in a tar file
)

// Defaults of short names, as Docker made them.
const (
	DefaultHost = "docker.io"
	DefaultTag  = "latest"
)

// Reference names an image as people type it. Tag and Digest may both be set:
// the digest decides, the tag is what the user said (distribution-spec).
type Reference struct {
	Transport  Transport
	Host       string // Registry: host[:port], docker.io for short names
	Repository string // Registry: library/nginx
	Path       string // LayoutDir and OCIArchive
	Tag        string // "" only with a digest, or where a layout has one image
	Digest     Digest // "" unless pinned
	PlainHTTP  bool   // http:// was typed
	Short      bool   // Registry: no host was typed, so that Host is the default
}

// limits and grammar of the distribution specification ("Pulling manifests").
const (
	maxReference  = 4096
	maxRepository = 255
)

var (
	hostPattern       = regexp.MustCompile(`^(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*\.?|\[[a-fA-F0-9:.]+(?:%[a-zA-Z0-9]+)?\])(?::[0-9]{1,5})?$`)
	repositoryPattern = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// ParseReference reads every form of reference that dray takes. Errors wrap
// [ErrReference] and say what was expected.
func ParseReference(s string) (Reference, error) {
	if len(s) > maxReference {
		return Reference{}, fmt.Errorf("parse reference %q: longer than %d bytes: %w", clip(s), maxReference, ErrReference)
	}
	if path, ok := strings.CutPrefix(s, "local://"); ok {
		return parsePath(s, path, LayoutDir)
	}
	if path, ok := strings.CutPrefix(s, "oci-archive:"); ok {
		path = strings.TrimPrefix(path, "//")
		if strings.HasPrefix(path, "//") { // written as it is, it would lose its root
			path = "/" + strings.TrimLeft(path, "/")
		}
		return parsePath(s, path, OCIArchive)
	}
	rest, plain := strings.CutPrefix(s, "http://")
	explicit := plain
	if !plain {
		rest, explicit = strings.CutPrefix(s, "https://")
		if !explicit {
			rest = strings.TrimPrefix(rest, "docker://")
		}
	}
	if scheme, _, ok := strings.Cut(rest, "://"); ok {
		return Reference{}, fmt.Errorf("parse reference %q: unknown scheme %q; want http://, https://, local:// or oci-archive: %w", clip(s), scheme, ErrReference)
	}
	if _, err := ParseDigest(rest); err == nil {
		return Reference{}, fmt.Errorf("parse reference %q: this is a digest; put the image in front of it, NAME@%s: %w", clip(s), rest, ErrReference)
	}
	ref := Reference{PlainHTTP: plain}
	name, err := ref.cutVersion(s, rest)
	if err != nil {
		return Reference{}, err
	}
	host, repository, hasHost := strings.Cut(name, "/")
	if !hasHost || !explicit && !looksLikeHost(host) {
		if explicit {
			return Reference{}, fmt.Errorf("parse reference %q: no repository after the host: %w", clip(s), ErrReference)
		}
		host, repository, ref.Short = DefaultHost, name, true
	}
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = DefaultHost
	}
	if host == DefaultHost && !strings.Contains(repository, "/") {
		repository = "library/" + repository
	}
	if !hostPattern.MatchString(host) {
		return Reference{}, fmt.Errorf("parse reference %q: %q is not a host: %w", clip(s), clip(host), ErrReference)
	}
	if len(repository) > maxRepository || !repositoryPattern.MatchString(repository) {
		return Reference{}, fmt.Errorf("parse reference %q: %q is not a repository name (lower case letters, digits, and . _ - / between them): %w", clip(s), clip(repository), ErrReference)
	}
	ref.Host, ref.Repository = host, repository
	if ref.Tag == "" && ref.Digest == "" {
		ref.Tag = DefaultTag
	}
	return ref, nil
}

// looksLikeHost tells whether what stands before the first slash is a host rather
// than a part of a repository on [DefaultHost], by Docker's rule.
func looksLikeHost(s string) bool {
	return strings.ContainsAny(s, ".:") || s == "localhost" || strings.ToLower(s) != s
}

func parsePath(s, rest string, transport Transport) (Reference, error) {
	ref := Reference{Transport: transport}
	path, err := ref.cutVersion(s, rest)
	if err != nil {
		return Reference{}, err
	}
	if path == "" {
		return Reference{}, fmt.Errorf("parse reference %q: no path: %w", clip(s), ErrReference)
	}
	ref.Path = path
	return ref, nil
}

// cutVersion takes @digest and :tag off the end of rest into r.
func (r *Reference) cutVersion(s, rest string) (string, error) {
	if i := strings.LastIndexByte(rest, '@'); i >= 0 && !strings.Contains(rest[i:], "/") {
		digest, err := ParseDigest(rest[i+1:])
		if err != nil {
			return "", fmt.Errorf("parse reference %q: %w: %w", clip(s), ErrReference, err)
		}
		r.Digest, rest = digest, rest[:i]
	}
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') && !strings.HasSuffix(rest, "]") {
		tag := rest[i+1:]
		if !tagPattern.MatchString(tag) {
			return "", fmt.Errorf("parse reference %q: %q is not a tag: %w", clip(s), clip(tag), ErrReference)
		}
		r.Tag, rest = tag, rest[:i]
	}
	return rest, nil
}

// String returns the reference in full, so that [ParseReference] reads it back.
func (r Reference) String() string {
	name := ""
	switch r.Transport {
	case Registry:
		name = r.Name()
		switch {
		case r.PlainHTTP:
			name = "http://" + name
		case !looksLikeHost(r.Host): // or it would be read as the first part of a short name
			name = "https://" + name
		}
	case LayoutDir:
		name = "local://" + r.Path
	case OCIArchive:
		name = "oci-archive:" + r.Path
	}
	if r.Tag != "" {
		name += ":" + r.Tag
	}
	if r.Digest != "" {
		name += "@" + string(r.Digest)
	}
	return name
}

// Name returns host/repository, without tag and digest: the name that scopes
// credentials and policies.
func (r Reference) Name() string { return r.Host + "/" + r.Repository }

// WithDigest returns the reference pinned to d.
func (r Reference) WithDigest(d Digest) Reference {
	r.Digest = d
	return r
}
