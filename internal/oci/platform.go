package oci

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
)

var (
	// ErrPlatform reports a platform that no manifest of an index fits.
	ErrPlatform = errors.New("platform not found")
	// ErrPlatformName reports text that is not a platform.
	ErrPlatformName = errors.New("invalid platform")
)

// Platform is what an image runs on (image-spec, image-index.md).
type Platform struct {
	Architecture string   `json:"architecture"`
	OS           string   `json:"os"`
	OSVersion    string   `json:"os.version,omitempty"`
	OSFeatures   []string `json:"os.features,omitempty"`
	Variant      string   `json:"variant,omitempty"`
}

// HostPlatform returns Linux on this processor. Which generation of it is left
// open, so that an image of the base line always fits.
func HostPlatform() Platform {
	return Platform{OS: "linux", Architecture: runtime.GOARCH}.normal()
}

// ParsePlatform reads "os", "arch", "os/arch" or "os/arch/variant", as
// containerd's and Docker's tools take it; the missing half is this host's.
func ParsePlatform(s string) (Platform, error) {
	host := HostPlatform()
	parts := strings.Split(strings.ToLower(s), "/")
	for _, part := range parts {
		if part == "" || strings.Trim(part, "abcdefghijklmnopqrstuvwxyz0123456789_-.") != "" {
			return Platform{}, fmt.Errorf("parse platform %q: want os/arch[/variant]: %w", clip(s), ErrPlatformName)
		}
	}
	switch len(parts) {
	case 1:
		if knownOS(parts[0]) {
			return Platform{OS: parts[0], Architecture: host.Architecture}.normal(), nil
		}
		return Platform{OS: host.OS, Architecture: parts[0]}.normal(), nil
	case 2:
		return Platform{OS: parts[0], Architecture: parts[1]}.normal(), nil
	case 3:
		return Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}.normal(), nil
	}
	return Platform{}, fmt.Errorf("parse platform %q: want os/arch[/variant]: %w", clip(s), ErrPlatformName)
}

// String returns os/arch or os/arch/variant.
func (p Platform) String() string {
	if p.Variant == "" {
		return p.OS + "/" + p.Architecture
	}
	return p.OS + "/" + p.Architecture + "/" + p.Variant
}

// Rank tells how well an image for have runs where p is wanted: 0 not at all,
// otherwise the greater the better. An older generation of the same processor
// fits a newer one, never the other way round; "amd64" wanted without a variant
// takes the base line only, "arm" means v7, "arm64" means v8.
func (p Platform) Rank(have Platform) int {
	p, have = p.normal(), have.normal()
	if p.OS != have.OS || p.Architecture != have.Architecture {
		return 0
	}
	want, got := generation(p), generation(have)
	if got > want {
		return 0
	}
	return 1 + got
}

// Choose returns the manifest of the index that runs best where p is wanted, the
// first of equals. Nested indexes without a platform are not looked into: they
// are returned by [Nested]. The error wraps [ErrPlatform] and names what there is.
func (p Platform) Choose(index *Index) (Descriptor, error) {
	best, bestRank := -1, 0
	var offered []string
	for i := range index.Manifests {
		d := &index.Manifests[i]
		if d.Platform == nil || d.Platform.OS == "unknown" {
			continue
		}
		offered = append(offered, d.Platform.String())
		if rank := p.Rank(*d.Platform); rank > bestRank {
			best, bestRank = i, rank
		}
	}
	if best < 0 {
		return Descriptor{}, fmt.Errorf("choose %s: index offers %s: %w", p, listed(offered), ErrPlatform)
	}
	return index.Manifests[best], nil
}

// Nested returns the entries that only a look inside can tell the platform of:
// indexes and manifests that name none. Attestations and other artifacts are
// left out.
func Nested(index *Index) []Descriptor {
	var nested []Descriptor
	for _, d := range index.Manifests {
		if d.Platform == nil && d.ArtifactType == "" && (IsIndex(d.MediaType) || IsManifest(d.MediaType)) {
			nested = append(nested, d)
		}
	}
	return nested
}

// normal returns p with the aliases that other tools write resolved.
func (p Platform) normal() Platform {
	p.OS, p.Architecture, p.Variant = strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	if p.OS == "macos" {
		p.OS = "darwin"
	}
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "i386", "i486", "i586", "i686":
		p.Architecture = "386"
	case "aarch64", "arm64":
		p.Architecture = "arm64"
		if p.Variant == "8" || p.Variant == "v8" || p.Variant == "v8.0" {
			p.Variant = ""
		}
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	}
	if p.Architecture == "arm" {
		if p.Variant == "" {
			p.Variant = "v7"
		}
		if p.Variant[0] != 'v' {
			p.Variant = "v" + p.Variant
		}
	}
	if p.Architecture == "amd64" && p.Variant == "v1" {
		p.Variant = ""
	}
	return p
}

// generation returns the number behind the v of a variant ("v8.2" is 802), or
// the base line's where there is none. An unknown variant is later than all.
func generation(p Platform) int {
	base := 0
	switch p.Architecture {
	case "amd64":
		base = 100
	case "arm64":
		base = 800
	}
	if p.Variant == "" {
		return base
	}
	major, minor, _ := strings.Cut(strings.TrimPrefix(p.Variant, "v"), ".")
	n, err := strconv.ParseUint(major, 10, 8)
	m, minorErr := strconv.ParseUint("0"+minor, 10, 8)
	if err != nil || minorErr != nil {
		return 1 << 20
	}
	return int(n)*100 + int(m)
}

func knownOS(s string) bool {
	switch s {
	case "linux", "windows", "darwin", "macos", "freebsd", "netbsd", "openbsd", "solaris", "aix", "plan9", "android", "illumos", "wasip1":
		return true
	}
	return false
}

func listed(platforms []string) string {
	if len(platforms) == 0 {
		return "no platform"
	}
	return strings.Join(platforms, ", ")
}
