package guest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dray/internal/guest"
	"dray/internal/registry"
)

func certificate(tb testing.TB) string {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func writeFile(tb testing.TB, name, text string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

func TestLoadConfig(t *testing.T) {
	t.Parallel()
	ca, other := certificate(t), certificate(t)
	asJSON := func(s string) string { return strings.ReplaceAll(s, "\n", `\n`) }
	registries := writeFile(t, "registries.conf", `
unqualified-search-registries = ["quay.io", "docker.io"]

[[registry]]
prefix = "*.internal.example"
blocked = true

[[registry]]
location = "ghcr.io/team"
insecure = true
`)
	hubHosts := []registry.Host{
		{
			Match: "docker.io", Location: "mirror.example:5000/hub",
			Mirrors: []registry.Mirror{
				{Location: "10.0.0.1:5000/cache", Access: registry.Access{PlainHTTP: true}},
				{Location: "[fd00::1]:5000"},
			},
		},
		{Match: "*.internal.example", Blocked: true},
	}
	hub := &guest.Config{
		Store:            "/run/images",
		Sockets:          []string{"unix:///run/confidential-containers/cdh.sock"},
		AuthFiles:        []string{"/etc/auth.json"},
		CAs:              []byte(ca + "\n" + other + "\n"),
		Hosts:            hubHosts,
		SearchRegistries: []string{"docker.io"},
		ExtraEnv:         map[string]string{"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "10.0.0.0/8"},
		MaxLayers:        5,
		Ignored:          []string{"aa", "credentials", "kbc", "log", "skip_sealed_secret_verification"},
	}
	tests := []struct {
		name, file, text string
		want             *guest.Config
	}{
		{"empty", "imagepuller.toml", "", &guest.Config{RequireDigest: true}},
		{"imagepuller: everything", "imagepuller.toml", `
# where to fetch
[registries."."]
mirror = "http://cache.example:8080/all"

[registries."ghcr.io."]
auth = "bWU6c2VjcmV0OjE="
ca-certs = """
` + ca + `"""
mirror = 'https://mirror.example/v2-prefix'

[registries.".example.com."]
username = "me"
password = "secret"
insecure-skip-verify = true

[registries."quay.io."]
identitytoken = "refresh"
[registries."gcr.io."]
registrytoken = "bearer"

[extra-env]
HTTP_PROXY = "http://proxy:3128"
HTTPS_PROXY = "http://me:secret@proxy:3128"
NO_PROXY = "localhost"
`, &guest.Config{
			RequireDigest: true,
			Hosts: []registry.Host{
				{Match: ".", Mirrors: []registry.Mirror{{URL: "http://cache.example:8080/all"}}},
				{Match: ".example.com.", Access: registry.Access{Credentials: &registry.Credentials{Username: "me", Password: "secret"}, InsecureSkipVerify: true}},
				{Match: "gcr.io.", Access: registry.Access{Credentials: &registry.Credentials{RegistryToken: "bearer"}}},
				{
					Match:   "ghcr.io.",
					Access:  registry.Access{Credentials: &registry.Credentials{Username: "me", Password: "secret:1"}, CAs: []byte(ca)},
					Mirrors: []registry.Mirror{{URL: "https://mirror.example/v2-prefix", Access: registry.Access{Credentials: &registry.Credentials{Username: "me", Password: "secret:1"}, CAs: []byte(ca)}}},
				},
				{Match: "quay.io.", Access: registry.Access{Credentials: &registry.Credentials{IdentityToken: "refresh"}}},
			},
			ExtraEnv: map[string]string{"HTTP_PROXY": "http://proxy:3128", "HTTPS_PROXY": "http://me:secret@proxy:3128", "NO_PROXY": "localhost"},
		}},
		{"hub: everything, TOML", "cdh.toml", `
socket = "unix:///run/confidential-containers/cdh.sock"
skip_sealed_secret_verification = true

[kbc]
name = "cc_kbc"
url = "http://kbs.example:8080"

[aa]
aa_socket = "unix:///run/aa.sock"

[[credentials]]
resource_uri = "kbs:///default/key/1"
path = "/run/key"

[log]
level = "debug"

[image]
work_dir = "/run/images"
authenticated_registry_credentials_uri = "file:///etc/auth.json"
max_concurrent_layer_downloads_per_image = 5
extra_root_certificates = ["""
` + ca + `""", '''
` + other + `''']

[image.image_pull_proxy]
https_proxy = "http://proxy:3128"
no_proxy = "10.0.0.0/8"

[image.registry_config]
unqualified-search-registries = ["docker.io"]

[[image.registry_config.registry]]
prefix = "docker.io"
location = "mirror.example:5000/hub"
[[image.registry_config.registry.mirror]]
location = "10.0.0.1:5000/cache"
insecure = true
[[image.registry_config.registry.mirror]]
location = "[fd00::1]:5000"

[[image.registry_config.registry]]
prefix = "*.internal.example"
blocked = true
`, hub},
		{"hub: everything, JSON", "cdh.json", `{
  "socket": "unix:///run/confidential-containers/cdh.sock",
  "skip_sealed_secret_verification": true,
  "kbc": {"name": "cc_kbc", "url": "http://kbs.example:8080", "kbs_cert": null},
  "aa": {"aa_socket": "unix:///run/aa.sock"},
  "credentials": [{"resource_uri": "kbs:///default/key/1", "path": "/run/key"}],
  "log": {"level": "debug"},
  "image": {
    "work_dir": "/run/images",
    "authenticated_registry_credentials_uri": "file:///etc/auth.json",
    "image_security_policy_uri": null,
    "max_concurrent_layer_downloads_per_image": 5,
    "extra_root_certificates": ["` + asJSON(ca) + `", "` + asJSON(other) + `"],
    "image_pull_proxy": {"https_proxy": "http://proxy:3128", "no_proxy": "10.0.0.0/8"},
    "registry_config": {
      "unqualified-search-registries": ["docker.io"],
      "registry": [
        {"prefix": "docker.io", "location": "mirror.example:5000/hub", "mirror": [
          {"location": "10.0.0.1:5000/cache", "insecure": true}, {"location": "[fd00::1]:5000"}]},
        {"prefix": "*.internal.example", "blocked": true}
      ]
    }
  }
}`, hub},
		{"hub: registries by file", "cdh.toml", `
[kbc]
name = "offline_fs_kbc"
[image]
authenticated_registry_credentials_uri = "/etc/auth.json"
registry_configuration_uri = "file://` + registries + `"
`, &guest.Config{
			AuthFiles:        []string{"/etc/auth.json"},
			SearchRegistries: []string{"quay.io", "docker.io"},
			Hosts: []registry.Host{
				{Match: "*.internal.example", Blocked: true},
				{Match: "ghcr.io/team", Access: registry.Access{PlainHTTP: true}},
			},
			Ignored: []string{"kbc"},
		}},
		{"hub: the inline table wins", "cdh.toml", `
[image]
registry_configuration_uri = "/does/not/exist"
registry_config = { registry = [] }
`, &guest.Config{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := guest.LoadConfig(writeFile(t, test.file, test.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(got, test.want, cmp.Transformer("text", func(b []byte) string { return string(b) })); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
		})
	}
}

func TestConfigRefusals(t *testing.T) {
	t.Parallel()
	broken := writeFile(t, "registries.conf", "\n[[registry]]\nlocation = \"a.example\"\nshort-name-mode = \"x\"\n")
	tests := []struct {
		name, text  string
		line        int
		key         string
		unsupported bool
		want        string
	}{
		{"imagepuller: unknown key", "[registries.\"a.\"]\nusername = \"x\"\nusernme = \"y\"\n", 3, `registries."a.".usernme`, false, "unknown to imagepuller"},
		{"imagepuller: key in capitals", "[registries.\"a.\"]\nPassword = \"hunter2\"\n", 2, `registries."a.".Password`, false, "unknown"},
		{"imagepuller: other variable", "[extra-env]\nHTTPS_PROXY = \"x\"\n\nLD_PRELOAD = \"hunter2\"\n", 4, "extra-env.LD_PRELOAD", false, "only HTTP_PROXY, HTTPS_PROXY and NO_PROXY"},
		{"imagepuller: unknown section", "[registries]\n[polcy]\nx = 1\n", 2, "polcy", false, "unknown to imagepuller"},
		{"imagepuller: auth", "[registries.\"a.\"]\nauth = \"hunter2\"\n", 2, `registries."a.".auth`, false, "want base64 of USER:PASSWORD"},
		{"imagepuller: certificate", "[registries.\"a.\"]\nca-certs = \"hunter2\"\n", 2, `registries."a.".ca-certs`, false, "no PEM certificate"},
		{"imagepuller: private key", "[registries.\"a.\"]\nca-certs = \"-----BEGIN PRIVATE KEY-----\\n-----END PRIVATE KEY-----\\n\"\n", 2, `registries."a.".ca-certs`, false, "not a CERTIFICATE"},
		{"imagepuller: mirror", "[registries.\"a.\"]\nmirror = \"mirror.example\"\n", 2, `registries."a.".mirror`, false, "want https://HOST/PATH"},
		{"imagepuller: mirror with a password", "[registries.\"a.\"]\nmirror = \"https://me:hunter2@a/\"\n", 2, `registries."a.".mirror`, false, "a user"},
		{"imagepuller: name", "[registries.\"https://a\"]\n", 1, `registries."https://a"`, false, "want a host name"},
		{"secret without quotes", "[registries.\"a.\"]\npassword = hunter2\n", 2, `registries."a.".password`, false, "not valid TOML"},
		{"secret of the wrong type", "[registries.\"a.\"]\npassword = 12345678\n", 2, `registries."a.".password`, false, "value of the wrong type"},
		{"both", "[extra-env]\n[image]\n", 2, "image", false, `but "extra-env" to imagepuller's`},
		{"hub: policy", "[kbc]\nname = \"x\"\n[image]\nimage_security_policy_uri = \"kbs:///a/b/c\"\n", 4, "image.image_security_policy_uri", true, "signature policies are not supported by this version: remove the key, and pin images by digest"},
		{"hub: empty policy", "[image]\nimage_security_policy = \"\"\n", 2, "image.image_security_policy", true, "signature policies"},
		{"hub: sigstore", "[image.sigstore_config]\nx = 1\n", 1, "image.sigstore_config", true, "signature policies"},
		{"hub: sigstore by URI", "[image]\nsigstore_config_uri = \"file:///x\"\n", 2, "image.sigstore_config_uri", true, "signature policies"},
		{"hub: key provider", "[image]\nkbs_uri = \"x\"\n", 2, "image.kbs_uri", true, "encrypted images"},
		{"hub: key provider's kind", "[image]\nkbc = \"x\"\n", 2, "image.kbc", true, "encrypted images"},
		{"hub: credentials from a broker", "[image]\nauthenticated_registry_credentials_uri = \"kbs:///a/b/c\"\n", 2, "image.authenticated_registry_credentials_uri", true, "key broker (kbs://)"},
		{"hub: registries from a broker", "[image]\nregistry_configuration_uri = \"kbs+x:///a/b/c\"\n", 2, "image.registry_configuration_uri", true, "key broker (kbs+x://)"},
		{"hub: other scheme", "[image]\nregistry_configuration_uri = \"https://a/b\"\n", 2, "image.registry_configuration_uri", false, "want a path or file:///PATH"},
		{"hub: missing registries", "[image]\nregistry_configuration_uri = \"/does/not/exist\"\n", 2, "image.registry_configuration_uri", false, "no such file"},
		{"hub: registries' own error", "[image]\nregistry_configuration_uri = \"" + broken + "\"\n", 4, "registry.short-name-mode", true, "nor by the Hub"},
		{"hub: unknown image key", "[image]\nwork_dirs = \"/x\"\n", 2, "image.work_dirs", false, "unknown to the Confidential Data Hub"},
		{"hub: image key in capitals", "[image]\nImage_Security_Policy = \"x\"\n", 2, "image.Image_Security_Policy", false, "unknown to the Confidential Data Hub"},
		{"hub: misspelt section", "[kbc]\n[imge]\nimage_security_policy = \"x\"\n", 2, "imge", false, "unknown to the Confidential Data Hub"},
		{"hub: section in capitals", "[Image]\nwork_dir = \"/x\"\n", 1, "Image", false, "unknown to the Confidential Data Hub"},
		{"hub: relative store", "[image]\nwork_dir = \"x\"\n", 2, "image.work_dir", false, "absolute"},
		{"hub: socket", "socket = \"127.0.0.1:50000\"\n", 1, "socket", false, "want unix:///PATH"},
		{"hub: no layers", "[image]\nmax_concurrent_layer_downloads_per_image = 0\n", 2, "image.max_concurrent_layer_downloads_per_image", false, "from 1 to 1024"},
		{"hub: certificate", "[image]\nextra_root_certificates = [\"x\"]\n", 2, "image.extra_root_certificates", false, "certificate 1: no PEM certificate"},
		{"hub: mirror option", "[image]\n[[image.registry_config.registry]]\nlocation=\"a.example\"\n[[image.registry_config.registry.mirror]]\nlocation=\"b.example\"\npull-from-mirror = \"all\"\n", 6, "image.registry_config.registry.mirror.pull-from-mirror", true, "nor by the Hub"},
		{"hub: aliases", "[image.registry_config.aliases]\na = \"b.example/a\"\n", 1, "image.registry_config.aliases", true, "nor by the Hub"},
		{"hub: prefix", "[[image.registry_config.registry]]\nprefix = \"http://a\"\n", 1, "image.registry_config.registry", false, "want HOST[:PORT][/PATH]"},
		{"hub: nothing to match", "[[image.registry_config.registry]]\ninsecure = true\n", 1, "image.registry_config.registry", false, `prefix ""`},
		{"hub: wildcard with a location", "[[image.registry_config.registry]]\nprefix = \"*.a\"\nlocation = \"b.example\"\n", 1, "image.registry_config.registry", false, "takes no location"},
		{"hub: twice", "[[image.registry_config.registry]]\nlocation = \"a.example\"\n[[image.registry_config.registry]]\nprefix = \"a.example\"\n", 0, "image.registry_config.registry", false, "occurs twice"},
		{"hub: mirror", "[[image.registry_config.registry]]\nlocation = \"a.example\"\nmirror = [{ location = \"\" }]\n", 3, "image.registry_config.registry.mirror", false, "want HOST[:PORT][/PATH]"},
		{"JSON: policy", `{"image": {"image_security_policy": "x"}}`, 0, "image.image_security_policy", true, "signature policies"},
		{"hub: table for a value", "[image]\nwork_dir = {}\n", 2, "image.work_dir", false, "value of the wrong type"},
		{"hub: value for a table", "[image]\nimage_pull_proxy = \"x\"\n", 2, "image.image_pull_proxy", false, "value of the wrong type"},
		{"JSON: wrong type", `{"image": {"extra_root_certificates": "x"}}`, 0, "image.extra_root_certificates", false, "value of the wrong type"},
		{"deep keys", strings.Repeat("a . ", 1<<16) + "a = 1\n", 0, "", false, "nest too deeply"},
		{"deep quoted keys", "[" + strings.Repeat("'a.b'.", 1<<16) + "a]\n", 0, "", false, "nest too deeply"},
		{"deep tables", strings.Repeat("a = {\n", 1<<16), 0, "", false, "nest too deeply"},
		{"JSON: deep", strings.Repeat(`{"a":[`, 5000) + strings.Repeat("]}", 5000), 0, "", false, "nest too deeply"},
		{"JSON: null at the top", "{} null", 0, "", false, "more than one JSON value"},
		{"JSON: syntax", "{\n\"image\": {\n\"a\": hunter2}}", 0, "", false, "line 3: not valid JSON"},
		{"JSON: more", "{}{}", 0, "", false, "more than one JSON value"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := guest.LoadConfig(writeFile(t, "config", test.text))
			got, ok := errors.AsType[*guest.ConfigError](err)
			if !ok {
				t.Fatalf("got %v, want a ConfigError", err)
			}
			if test.line != 0 && got.Line != test.line || got.Key != test.key || !contains(got.Error(), test.want) {
				t.Errorf("got line %d, key %s, %v; want line %d, key %s, %q", got.Line, got.Key, got, test.line, test.key, test.want)
			}
			if errors.Is(err, guest.ErrUnsupported) != test.unsupported {
				t.Errorf("unsupported is %v, want %v", !test.unsupported, test.unsupported)
			}
			for _, secret := range []string{"hunter2", "12345678"} {
				if contains(err.Error(), secret) {
					t.Errorf("the error tells a secret: %v", err)
				}
			}
		})
	}
}

func TestConfigFile(t *testing.T) {
	t.Parallel()
	if _, err := guest.LoadConfig("/does/not/exist"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: got %v", err)
	}
	if _, err := guest.LoadConfig(writeFile(t, "large", strings.Repeat("#", 1<<20+1))); err == nil {
		t.Error("a file of more than 1 MiB was read")
	}
}

// FuzzLoadConfig looks for panics, and for settings that only the registry's
// client would refuse, without telling line and key.
func FuzzLoadConfig(f *testing.F) {
	for _, seed := range []string{
		"", "{}", "[registries.\"ghcr.io.\"]\nauth = \"bWU6c2VjcmV0\"\nmirror = \"https://m/p\"\n[extra-env]\nNO_PROXY=\"x\"\n",
		"socket = \"unix:///a\"\n[image]\nwork_dir = \"/a\"\nextra_root_certificates = []\n[image.image_pull_proxy]\nhttp_proxy = \"x\"\n",
		"[[image.registry_config.registry]]\nprefix = \"*.a\"\n[[image.registry_config.registry.mirror]]\nlocation = \"b\"\n",
		`{"image": {"max_concurrent_layer_downloads_per_image": 3, "registry_config": {"registry": [{"location": "a"}]}}}`,
		`{"image": {"image_security_policy": "x", "x": [1, null, [2.5]]}}`,
	} {
		f.Add(seed)
	}
	path := writeFile(f, "config", "")
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		config, err := guest.LoadConfig(path)
		if err != nil {
			if got, ok := errors.AsType[*guest.ConfigError](err); !ok || got.Path != path && got.Path == "" {
				t.Errorf("%v is no ConfigError", err)
			}
			return
		}
		if _, err := registry.NewClient(registry.Options{Hosts: config.Hosts, CAs: config.CAs}); err != nil {
			t.Errorf("a configuration that was taken is none: %v", err)
		}
	})
}
