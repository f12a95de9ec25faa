package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestAuthFileLookup(t *testing.T) {
	t.Parallel()
	helper := func(_ context.Context, helper, server string) (Credentials, error) {
		switch helper {
		case "broken":
			return Credentials{}, errors.New("helper is broken")
		case "empty":
			return Credentials{}, nil
		}
		return Credentials{Username: helper, Password: server}, nil
	}
	ann := Credentials{Username: "ann", Password: "pw"}
	for _, tt := range []struct {
		name, file, host, repository string
		want                         Credentials
		bad                          bool
	}{
		{"empty file", ``, "r.io", "a", Credentials{}, false},
		{"empty object", `{}`, "r.io", "a", Credentials{}, false},
		{"not JSON", `{"auths`, "r.io", "a", Credentials{}, true},
		{"auth", `{"auths":{"r.io":{"auth":"` + b64("ann:pw") + `"}}}`, "r.io", "a/b", ann, false},
		{"auth with line ends", `{"auths":{"r.io":{"auth":"` + b64("ann:pw\n") + `\n"}}}`, "r.io", "a", ann, false},
		{"auth without padding", `{"auths":{"r.io":{"auth":"` + strings.TrimRight(b64("ann:pw"), "=") + `"}}}`, "r.io", "a", ann, false},
		{"password with colons", `{"auths":{"r.io":{"auth":"` + b64("ann:p:w:") + `"}}}`, "r.io", "a", Credentials{Username: "ann", Password: "p:w:"}, false},
		{"user and password", `{"auths":{"r.io":{"username":"ann","password":"pw"}}}`, "r.io", "a", ann, false},
		{"identity token", `{"auths":{"r.io":{"auth":"` + b64("00000000-0000-0000-0000-000000000000:") + `","identitytoken":"id"}}}`, "r.io", "a", Credentials{Username: "00000000-0000-0000-0000-000000000000", IdentityToken: "id"}, false},
		{"registry token", `{"auths":{"r.io":{"registrytoken":"reg"}}}`, "r.io", "a", Credentials{RegistryToken: "reg"}, false},
		{"empty entry", `{"auths":{"r.io":{}}}`, "r.io", "a", Credentials{}, false},
		{"email of old", `{"auths":{"r.io":{"auth":"` + b64("ann:pw") + `","email":"x@y"}}}`, "r.io", "a", ann, false},
		{"another's odd entry", `{"auths":{"x.io":7,"r.io":{"auth":"` + b64("ann:pw") + `"}}}`, "r.io", "a", ann, false},
		{"own odd entry", `{"auths":{"r.io":7}}`, "r.io", "a", Credentials{}, true},
		{"not base64", `{"auths":{"r.io":{"auth":"%%%"}}}`, "r.io", "a", Credentials{}, true},
		{"no colon", `{"auths":{"r.io":{"auth":"` + b64("ann") + `"}}}`, "r.io", "a", Credentials{}, true},
		{"another port", `{"auths":{"r.io:5000":{"auth":"` + b64("ann:pw") + `"}}}`, "r.io", "a", Credentials{}, false},
		{"port", `{"auths":{"r.io:5000":{"auth":"` + b64("ann:pw") + `"}}}`, "r.io:5000", "a", ann, false},
		{"URL", `{"auths":{"https://r.io/v1/":{"auth":"` + b64("ann:pw") + `"}}}`, "r.io", "a", ann, false},
		{"plain URL", `{"auths":{"http://r.io":{"auth":"` + b64("ann:pw") + `"}}}`, "r.io", "a", ann, false},
		{"Docker Hub", `{"auths":{"https://index.docker.io/v1/":{"auth":"` + b64("ann:pw") + `"}}}`, "docker.io", "library/nginx", ann, false},
		{"Docker Hub as containers write it", `{"auths":{"docker.io/library":{"auth":"` + b64("ann:pw") + `"}}}`, "docker.io", "library/nginx", ann, false},
		{"longest key", `{"auths":{"r.io":{"auth":"` + b64("x:y") + `"},"r.io/a":{"auth":"` + b64("x:y") + `"},"r.io/a/b":{"auth":"` + b64("ann:pw") + `"},"r.io/a/bc":{"auth":"` + b64("x:y") + `"}}}`, "r.io", "a/b/c", ann, false},
		{"key of a sibling", `{"auths":{"r.io/a/bc":{"auth":"` + b64("x:y") + `"}}}`, "r.io", "a/b", Credentials{}, false},
		{"two spellings", `{"auths":{"https://r.io":{"auth":"` + b64("x:y") + `"},"r.io":{"auth":"` + b64("ann:pw") + `"}}}`, "r.io", "a", ann, false},
		{"helper of the host", `{"credHelpers":{"r.io":"h"},"auths":{"r.io":{"auth":"` + b64("x:y") + `"}}}`, "r.io", "a", Credentials{Username: "h", Password: "r.io"}, false},
		{"helper of another host", `{"credHelpers":{"x.io":"h"}}`, "r.io", "a", Credentials{}, false},
		{"helper knows nothing", `{"credHelpers":{"r.io":"empty"},"auths":{"r.io":{"auth":"` + b64("ann:pw") + `"}}}`, "r.io", "a", ann, false},
		{"broken helper", `{"credHelpers":{"r.io":"broken"}}`, "r.io", "a", Credentials{}, true},
		{"store", `{"credsStore":"s","auths":{"r.io":{}}}`, "r.io", "a", Credentials{Username: "s", Password: "r.io"}, false},
		{"store for Docker Hub", `{"credsStore":"s"}`, "docker.io", "library/x", Credentials{Username: "s", Password: "https://index.docker.io/v1/"}, false},
		{"entry beside a store", `{"credsStore":"s","auths":{"r.io":{"auth":"` + b64("ann:pw") + `"}}}`, "r.io", "a", ann, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			file, err := decodeAuthFile([]byte(tt.file))
			var got Credentials
			if err == nil {
				got, err = file.lookup(t.Context(), tt.host, tt.repository, helper)
			}
			if err != nil != tt.bad {
				t.Fatalf("got error %v", err)
			}
			if !tt.bad && got != tt.want {
				t.Errorf("got %q %q %q %q", got.Username, got.Password, got.IdentityToken, got.RegistryToken)
			}
		})
	}
}

func TestDefaultAuthFiles(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		env  map[string]string
		want []string
	}{
		{"nothing set", nil, nil},
		{"home", map[string]string{"HOME": "/h"}, []string{"/h/.config/containers/auth.json", "/h/.docker/config.json"}},
		{
			"all",
			map[string]string{"HOME": "/h", "REGISTRY_AUTH_FILE": "/f", "XDG_RUNTIME_DIR": "/run/u", "XDG_CONFIG_HOME": "/c", "DOCKER_CONFIG": "/d"},
			[]string{"/f", "/run/u/containers/auth.json", "/c/containers/auth.json", "/d/config.json"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, defaultAuthFiles(func(name string) string { return tt.env[name] })); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// The first file that has something for the repository wins; a default location
// that is not there is none, a file that was named must be.
func TestCredentialsFromFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	other := write("other", `{"auths":{"x.io":{"auth":"`+b64("x:y")+`"}}}`)
	first := write("first", `{"auths":{"r.io":{"auth":"`+b64("first:pw")+`"}}}`)
	second := write("second", `{"auths":{"r.io":{"auth":"`+b64("second:pw")+`"}}}`)
	broken := write("broken", `{`)
	for _, tt := range []struct {
		name  string
		files []string
		want  string
		bad   bool
	}{
		{"first that knows", []string{other, first, second}, "first", false},
		{"broken before good", []string{broken, second}, "second", false},
		{"broken alone", []string{broken, other}, "", true},
		{"missing", []string{filepath.Join(dir, "none")}, "", true},
		{"none", []string{}, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := &endpoint{client: newClient(t, Options{AuthFiles: tt.files}), keyHost: "r.io", repository: "a"}
			got, err := e.credentials(t.Context())
			if err != nil != tt.bad {
				t.Fatalf("got error %v", err)
			}
			if got.Username != tt.want {
				t.Errorf("got user %q, want %q", got.Username, tt.want)
			}
		})
	}
}

func TestCredentialHelper(t *testing.T) { // sets PATH: not parallel
	dir := t.TempDir()
	script := func(name, body string) {
		if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+body), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	script("good", `test "$1" = get || exit 1; read -r server; echo "{\"ServerURL\":\"$server\",\"Username\":\"ann\",\"Secret\":\"for $server\"}"`)
	script("token", `echo '{"Username":"<token>","Secret":"id"}'`)
	script("none", `echo "credentials not found in native keychain"; exit 1`)
	script("fails", `echo "geheim"; exit 3`)
	script("hangs", `exec sleep 1000`)
	script("nonsense", `echo "geheim"`)
	script("endless", `exec yes`)
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	for _, tt := range []struct {
		name string
		want Credentials
		bad  bool
	}{
		{"good", Credentials{Username: "ann", Password: "for r.io"}, false},
		{"token", Credentials{IdentityToken: "id"}, false},
		{"none", Credentials{}, false},
		{"fails", Credentials{}, true},
		{"hangs", Credentials{}, true},
		{"nonsense", Credentials{}, true},
		{"endless", Credentials{}, true},
		{"missing", Credentials{}, true},
		{"../good", Credentials{}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := &Options{Timeouts: Timeouts{Helper: 5 * time.Minute}}
			if tt.name == "hangs" || tt.name == "endless" {
				o.Timeouts.Helper = 50 * time.Millisecond
			}
			got, err := o.helper()(t.Context(), tt.name, "r.io")
			if err != nil != tt.bad || got != tt.want {
				t.Errorf("got %q %q and error %v", got.Username, got.Password, err)
			}
			if err != nil && strings.Contains(err.Error(), "geheim") {
				t.Errorf("error shows the helper's output: %v", err)
			}
		})
	}
}

func FuzzDecodeAuthFile(f *testing.F) {
	for _, s := range []string{`{}`, ``, `{"auths":{"r.io":{"auth":"YTpi"}},"credsStore":"x","credHelpers":{"a/b":"c"}}`, `{"auths":{"https://r.io/v1/":null}}`, `[]`} {
		f.Add([]byte(s))
	}
	none := func(context.Context, string, string) (Credentials, error) { return Credentials{}, nil }
	f.Fuzz(func(t *testing.T, raw []byte) {
		file, err := decodeAuthFile(raw)
		if err != nil {
			return
		}
		first, err := file.lookup(t.Context(), "r.io", "a/b", none)
		again, errAgain := file.lookup(t.Context(), "r.io", "a/b", none)
		if first != again || (err == nil) != (errAgain == nil) {
			t.Error("two look-ups have two results")
		}
	})
}
