package oci

import (
	"errors"
	"runtime"
	"strings"
	"testing"
)

func TestParsePlatform(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"linux/amd64":      "linux/amd64",
		"linux/amd64/v1":   "linux/amd64",
		"linux/amd64/v3":   "linux/amd64/v3",
		"Linux/X86_64":     "linux/amd64",
		"linux/i686":       "linux/386",
		"aarch64":          "linux/arm64",
		"linux/arm64/v8":   "linux/arm64",
		"linux/arm64/8":    "linux/arm64",
		"linux/arm64/v8.2": "linux/arm64/v8.2",
		"arm":              "linux/arm/v7",
		"linux/arm/6":      "linux/arm/v6",
		"armhf":            "linux/arm/v7",
		"armel":            "linux/arm/v6",
		"s390x":            "linux/s390x",
		"windows":          "windows/" + HostPlatform().Architecture,
		"macos":            "darwin/" + HostPlatform().Architecture,
		"macos/arm64":      "darwin/arm64",
		"linux":            HostPlatform().String(),
	} {
		t.Run(in, func(t *testing.T) {
			t.Parallel()
			got, err := ParsePlatform(in)
			if err != nil || got.String() != want {
				t.Errorf("got %s, %v, want %s", got, err, want)
			}
		})
	}
	for _, in := range []string{"", "/", "linux/", "/amd64", "linux/arm/v7/x", "linux amd64", "linux/amd64\n", "é"} {
		if got, err := ParsePlatform(in); !errors.Is(err, ErrPlatformName) {
			t.Errorf("ParsePlatform(%q): got %s, %v, want ErrPlatformName", in, got, err)
		}
	}
	if host := HostPlatform(); host.OS != "linux" || host.Rank(Platform{OS: "linux", Architecture: runtime.GOARCH}) == 0 {
		t.Errorf("images for this processor do not run on the host, %s", host)
	}
}

func platform(t *testing.T, s string) Platform {
	t.Helper()
	p, err := ParsePlatform(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPlatformRank(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		want, worse, better string // better "" : worse does not run at all
	}{
		{"linux/amd64", "linux/amd64/v2", ""},
		{"linux/amd64/v3", "linux/amd64/v4", ""},
		{"linux/amd64/v3", "linux/amd64", "linux/amd64/v2"},
		{"linux/amd64/v3", "linux/amd64/v2", "linux/amd64/v3"},
		{"linux/arm64", "linux/arm64/v9", ""},
		{"linux/arm64/v9", "linux/arm64/v8", "linux/arm64/v8.1"},
		{"linux/arm64/v9", "linux/arm64/v8.10", "linux/arm64/v9"},
		{"linux/arm", "linux/arm/v6", "linux/arm/v7"},
		{"linux/arm/v6", "linux/arm/v7", ""},
		{"linux/arm", "linux/arm64", ""},
		{"linux/amd64", "linux/386", ""},
		{"linux/amd64", "windows/amd64", ""},
		{"linux/amd64", "linux/amd64/unheard", ""},
	} {
		want := platform(t, c.want)
		worse := want.Rank(platform(t, c.worse))
		if c.better == "" {
			if worse != 0 {
				t.Errorf("%s runs where %s is wanted", c.worse, c.want)
			}
			continue
		}
		if better := want.Rank(platform(t, c.better)); worse == 0 || better <= worse {
			t.Errorf("where %s is wanted %s ranks %d, %s %d", c.want, c.worse, worse, c.better, better)
		}
	}
}

func TestPlatformChoose(t *testing.T) {
	t.Parallel()
	entry := func(name, p string) Descriptor {
		d := Descriptor{MediaType: MediaTypeManifest, Digest: DigestBytes([]byte(name))}
		if p == "attestation" {
			d.Platform = &Platform{OS: "unknown", Architecture: "unknown"}
		} else if p != "" {
			parsed := platform(t, p)
			d.Platform = &parsed
		}
		return d
	}
	index := &Index{Manifests: []Descriptor{
		entry("att", "attestation"), entry("none", ""), entry("amd", "linux/amd64"), entry("amd again", "linux/amd64"),
		entry("amd3", "linux/amd64/v3"), entry("arm6", "linux/arm/v6"), entry("win", "windows/amd64"),
	}}
	for want, name := range map[string]string{
		"linux/amd64": "amd", "linux/amd64/v2": "amd", "linux/amd64/v4": "amd3", "linux/arm": "arm6", "windows/amd64": "win",
	} {
		got, err := platform(t, want).Choose(index)
		if err != nil || got.Digest != DigestBytes([]byte(name)) {
			t.Errorf("%s: got %v, %v, want %q", want, got.Platform, err, name)
		}
	}
	_, err := platform(t, "linux/s390x").Choose(index)
	if !errors.Is(err, ErrPlatform) || !strings.Contains(err.Error(), "linux/arm/v6") || strings.Contains(err.Error(), "unknown") {
		t.Errorf("got %v, want ErrPlatform that names what there is", err)
	}
	if _, err := HostPlatform().Choose(&Index{}); !errors.Is(err, ErrPlatform) {
		t.Errorf("empty index: got %v", err)
	}
	if nested := Nested(index); len(nested) != 1 || nested[0].Digest != DigestBytes([]byte("none")) {
		t.Errorf("nested: %v", nested)
	}
}

func FuzzParsePlatform(f *testing.F) {
	for _, s := range []string{"linux/amd64", "arm", "linux/arm/8", "armhf", "macos", "linux/arm64/v8.2", "a/b/v9999999999", "linux/arm/.", "//"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePlatform(s)
		if err != nil {
			if !errors.Is(err, ErrPlatformName) {
				t.Errorf("got %v", err)
			}
			return
		}
		again, err := ParsePlatform(p.String())
		if err != nil || again.String() != p.String() {
			t.Errorf("%q is %s, which reads as %s, %v", s, p, again, err)
		}
		if p.Rank(p) == 0 {
			t.Errorf("%s does not run on itself", p)
		}
	})
}
