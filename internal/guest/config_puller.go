package guest

import (
	"encoding/base64"
	"errors"
	"net/url"
	"sort"
	"strings"

	"github.com/BurntSushi/toml"

	"dray/internal/registry"
)

// pullerFile is an imagepuller.toml.
type pullerFile struct {
	Registries map[string]pullerRegistry `toml:"registries"`
	ExtraEnv   map[string]string         `toml:"extra-env"`
}

// pullerRegistry has docker's AuthConfig, and how to reach the registry.
type pullerRegistry struct {
	Auth               string `toml:"auth"`
	Username           string `toml:"username"`
	Password           string `toml:"password"`
	IdentityToken      string `toml:"identitytoken"`
	RegistryToken      string `toml:"registrytoken"`
	CACerts            string `toml:"ca-certs"`
	InsecureSkipVerify bool   `toml:"insecure-skip-verify"`
	Mirror             string `toml:"mirror"`
}

// refusePuller says why a key is not taken; nil for the names that users choose.
func refusePuller(key toml.Key) error {
	if len(key) == 2 && (key[0] == "registries" || key[0] == "extra-env") {
		return nil
	}
	return errors.New("unknown to imagepuller")
}

func parsePuller(d *document) (*Config, error) {
	var file pullerFile
	if err := d.decode(&file, refusePuller); err != nil {
		return nil, err
	}
	c := &Config{RequireDigest: true}
	for name, r := range file.Registries {
		key := []string{"registries", name}
		if name == "" || strings.ContainsAny(name, "/* \t") {
			return nil, d.fail(errors.New(`want a host name with a dot at its end, ".DOMAIN." or "."`), key...)
		}
		host := registry.Host{Match: name}
		credentials, err := r.credentials()
		if err != nil {
			return nil, d.fail(err, append(key, "auth")...)
		}
		host.Credentials = credentials
		if r.CACerts != "" {
			if err := checkPEM(r.CACerts); err != nil {
				return nil, d.fail(err, append(key, "ca-certs")...)
			}
			host.CAs = []byte(r.CACerts)
		}
		host.InsecureSkipVerify = r.InsecureSkipVerify
		if r.Mirror != "" {
			if err := checkURL(r.Mirror); err != nil {
				return nil, d.fail(err, append(key, "mirror")...)
			}
			// A mirror of imagepuller's takes the registry's place with all
			// that is set for it.
			host.Mirrors = []registry.Mirror{{URL: r.Mirror, Access: host.Access}}
		}
		c.Hosts = append(c.Hosts, host)
	}
	sort.Slice(c.Hosts, func(i, j int) bool { return c.Hosts[i].Match < c.Hosts[j].Match })
	for name := range file.ExtraEnv {
		if name != "HTTP_PROXY" && name != "HTTPS_PROXY" && name != "NO_PROXY" {
			return nil, d.fail(errors.New("only HTTP_PROXY, HTTPS_PROXY and NO_PROXY may be set"), "extra-env", name)
		}
	}
	c.ExtraEnv = file.ExtraEnv
	return c, nil
}

// credentials returns what opens the registry, or nil.
func (r *pullerRegistry) credentials() (*registry.Credentials, error) {
	found := registry.Credentials{
		Username:      r.Username,
		Password:      r.Password,
		IdentityToken: r.IdentityToken,
		RegistryToken: r.RegistryToken,
	}
	if r.Auth != "" {
		text, err := base64.StdEncoding.DecodeString(r.Auth)
		user, password, ok := strings.Cut(string(text), ":")
		if err != nil || !ok {
			return nil, errors.New("want base64 of USER:PASSWORD")
		}
		// As docker does: auth wins over the two fields.
		found.Username, found.Password = user, strings.TrimRight(password, "\x00")
	}
	if found == (registry.Credentials{}) {
		return nil, nil
	}
	return &found, nil
}

// checkURL accepts http(s)://HOST[/PATH].
func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return errors.New("want https://HOST/PATH") // the URL's own error would quote it
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("a user, a query or a fragment has no place here")
	}
	return nil
}
