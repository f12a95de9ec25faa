package oci

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// notShort leaves out whether a host was typed: what is written has one.
var notShort = cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Short" }, cmp.Ignore())

func TestParseReference(t *testing.T) {
	t.Parallel()
	at := "@" + emptySHA256
	for in, want := range map[string]Reference{
		"nginx":                             {Host: "docker.io", Repository: "library/nginx", Tag: "latest"},
		"nginx:1.2":                         {Host: "docker.io", Repository: "library/nginx", Tag: "1.2"},
		"nginx" + at:                        {Host: "docker.io", Repository: "library/nginx", Digest: emptySHA256},
		"nginx:1" + at:                      {Host: "docker.io", Repository: "library/nginx", Tag: "1", Digest: emptySHA256},
		"a/b":                               {Host: "docker.io", Repository: "a/b", Tag: "latest"},
		"a/b/c":                             {Host: "docker.io", Repository: "a/b/c", Tag: "latest"},
		"docker.io/nginx":                   {Host: "docker.io", Repository: "library/nginx", Tag: "latest"},
		"index.docker.io/a/b":               {Host: "docker.io", Repository: "a/b", Tag: "latest"},
		"registry-1.docker.io/nginx":        {Host: "docker.io", Repository: "library/nginx", Tag: "latest"},
		"docker://nginx":                    {Host: "docker.io", Repository: "library/nginx", Tag: "latest"},
		"ghcr.io/a/b:t" + at:                {Host: "ghcr.io", Repository: "a/b", Tag: "t", Digest: emptySHA256},
		"localhost/x":                       {Host: "localhost", Repository: "x", Tag: "latest"},
		"localhost:5000":                    {Host: "docker.io", Repository: "library/localhost", Tag: "5000"}, // as Docker reads it
		"localhost:5000/x":                  {Host: "localhost:5000", Repository: "x", Tag: "latest"},
		"UPPER/x":                           {Host: "UPPER", Repository: "x", Tag: "latest"},
		"[::1]:5000/x:t":                    {Host: "[::1]:5000", Repository: "x", Tag: "t"},
		"[fe80::1]/x":                       {Host: "[fe80::1]", Repository: "x", Tag: "latest"},
		"http://127.0.0.1:5000/x":           {Host: "127.0.0.1:5000", Repository: "x", Tag: "latest", PlainHTTP: true},
		"http://host/x":                     {Host: "host", Repository: "x", Tag: "latest", PlainHTTP: true},
		"https://host/x":                    {Host: "host", Repository: "x", Tag: "latest"},
		"https://docker.io/nginx":           {Host: "docker.io", Repository: "library/nginx", Tag: "latest"},
		"a/b-c.d_e__f/g---h":                {Host: "docker.io", Repository: "a/b-c.d_e__f/g---h", Tag: "latest"},
		"local:///p":                        {Transport: LayoutDir, Path: "/p"},
		"local:///p:t":                      {Transport: LayoutDir, Path: "/p", Tag: "t"},
		"local:///p/a:b/c":                  {Transport: LayoutDir, Path: "/p/a:b/c"},
		"local://rel" + at:                  {Transport: LayoutDir, Path: "rel", Digest: emptySHA256},
		"local:///with space@home/x":        {Transport: LayoutDir, Path: "/with space@home/x"},
		"oci-archive:/p.tar":                {Transport: OCIArchive, Path: "/p.tar"},
		"oci-archive:///p.tar:t":            {Transport: OCIArchive, Path: "/p.tar", Tag: "t"},
		"oci-archive:////p.tar":             {Transport: OCIArchive, Path: "/p.tar"},
		"oci-archive:rel.tar:v1" + at:       {Transport: OCIArchive, Path: "rel.tar", Tag: "v1", Digest: emptySHA256},
		"x:" + strings.Repeat("t", 128):     {Host: "docker.io", Repository: "library/x", Tag: strings.Repeat("t", 128)},
		"xn--bcher-kva.example.:5000/a:b_c": {Host: "xn--bcher-kva.example.:5000", Repository: "a", Tag: "b_c"},
	} {
		t.Run(in, func(t *testing.T) {
			t.Parallel()
			got, err := ParseReference(in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(got, want, notShort); diff != "" {
				t.Errorf("(-got +want)\n%s", diff)
			}
			again, err := ParseReference(got.String())
			if err != nil || !cmp.Equal(again, got, notShort) {
				t.Errorf("%q is written %q, which reads as %+v, %v", in, got.String(), again, err)
			}
		})
	}
}

func TestParseReferenceRefuses(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]string{
		"empty":               "",
		"only a tag":          ":t",
		"only a digest":       "@" + emptySHA256,
		"empty tag":           "x:",
		"empty digest":        "x@",
		"digest alone":        emptySHA256,
		"bad tag":             "x:-t",
		"long tag":            "x:" + strings.Repeat("t", 129),
		"short digest":        "x@sha256:abc",
		"upper case name":     "x/Y",
		"two slashes":         "x//y",
		"slash at the end":    "x/",
		"dots":                "../x",
		"dots inside":         "h.io/a/../b",
		"underscores":         "a___b",
		"no repository":       "http://host",
		"no repository, tls":  "https://host:5000",
		"empty host":          "http:///x",
		"other scheme":        "ftp://host/x",
		"user":                "https://user:password@host/x",
		"query":               "host.io/x?y",
		"host with _":         "a_b.c/d",
		"port too long":       "host:123456/x",
		"host of dots":        "./x",
		"line break":          "x\ny",
		"NUL":                 "x\x00",
		"long name":           "h.io/" + strings.Repeat("a", maxRepository+1),
		"long":                strings.Repeat("a", maxReference+1),
		"no path":             "local://",
		"no path but a tag":   "local://:t",
		"no archive":          "oci-archive:",
		"no archive, slashes": "oci-archive://",
		"bad tag of a path":   "local:///p:a b",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := ParseReference(in)
			if !errors.Is(err, ErrReference) {
				t.Fatalf("got %+v, %v, want ErrReference", got, err)
			}
			if len(err.Error()) > 600 {
				t.Errorf("message repeats %d bytes of input", len(err.Error()))
			}
		})
	}
}

func TestReferencePinned(t *testing.T) {
	t.Parallel()
	ref, err := ParseReference("http://127.0.0.1:5000/a/b:t")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := ref.WithDigest(emptySHA256).String(), "http://127.0.0.1:5000/a/b:t@"+emptySHA256; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := ref.Name(), "127.0.0.1:5000/a/b"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if ref.Digest != "" {
		t.Error("WithDigest changed its receiver")
	}
}

// What is taken is written so that it is read as the same.
func FuzzParseReference(f *testing.F) {
	for _, s := range []string{
		"nginx", "a/b:c@" + emptySHA256, "http://h/x", "https://h/x", "local:///p:t", "oci-archive:////p", "[::1%eth0]:1/x",
		"docker://docker.io/x", "localhost:5000", "x@y/z", "local://@" + emptySHA256, "oci-archive:a:b:c",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s)
		if err != nil {
			if !errors.Is(err, ErrReference) {
				t.Errorf("got %v", err)
			}
			return
		}
		if ref.Transport == Registry && (ref.Host == "" || ref.Repository == "" || ref.Path != "" || ref.Tag == "" && ref.Digest == "") {
			t.Errorf("incomplete: %+v", ref)
		}
		if ref.Transport == Registry && strings.Contains(ref.Repository, "..") {
			t.Errorf("took %+v", ref)
		}
		if len(ref.String()) > maxReference { // defaults were added
			return
		}
		again, err := ParseReference(ref.String())
		if err != nil || !cmp.Equal(again, ref, notShort) {
			t.Errorf("%q is %+v, written %q, which reads as %+v, %v", s, ref, ref.String(), again, err)
		}
	})
}
