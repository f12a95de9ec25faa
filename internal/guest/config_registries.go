package guest

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/BurntSushi/toml"

	"dray/internal/registry"
)

// registriesFile is a containers-registries.conf(5), as far as the Hub has it.
type registriesFile struct {
	Search     []string        `toml:"unqualified-search-registries"`
	Registries []registryEntry `toml:"registry"`
}

type registryEntry struct {
	Prefix   string `toml:"prefix"`
	Location string `toml:"location"`
	Insecure bool   `toml:"insecure"`
	Blocked  bool   `toml:"blocked"`
	Mirrors  []struct {
		Location string `toml:"location"`
		Insecure bool   `toml:"insecure"`
	} `toml:"mirror"`
}

// unknownRegistryKey says why a key of the registries' configuration is not
// taken. The Hub passes over those that it does not have; here that would change
// from where an image comes without a word.
func unknownRegistryKey(key toml.Key) error {
	if len(key) > 0 {
		switch key[len(key)-1] {
		case "aliases", "credential-helpers", "short-name-mode", "pull-from-mirror", "mirror-by-digest-only", "additional-layer-store-auth-helper":
			return fmt.Errorf("%q of registries.conf is %w, nor by the Hub: remove the key", key[len(key)-1], ErrUnsupported)
		}
		if key[0] == "aliases" {
			return fmt.Errorf("aliases of registries.conf are %w, nor by the Hub: remove the table", ErrUnsupported)
		}
	}
	return errors.New("unknown to registries.conf")
}

func parseRegistries(c *Config, path, text string) error {
	d, err := newDocument(path, text)
	if err != nil {
		return err
	}
	var file registriesFile
	if err := d.decode(&file, unknownRegistryKey); err != nil {
		return err
	}
	return file.addTo(c, d)
}

// place is host[:port][/path]; the host may be an IPv6 address in brackets.
var place = regexp.MustCompile(`^(\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?)(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$`)

// addTo takes the file over into c. Errors name keys below above.
func (f *registriesFile) addTo(c *Config, d *document, above ...string) error {
	for _, host := range f.Search {
		if !place.MatchString(host) {
			return d.fail(fmt.Errorf("%q: want HOST[:PORT]", host), join(above, "unqualified-search-registries")...)
		}
	}
	c.SearchRegistries = f.Search
	seen := map[string]bool{}
	for _, r := range f.Registries {
		if r.Prefix == "" {
			r.Prefix = r.Location
		}
		domain, wildcard := strings.CutPrefix(r.Prefix, "*.")
		switch {
		case !place.MatchString(domain):
			return d.fail(fmt.Errorf("prefix %q: want HOST[:PORT][/PATH] or *.DOMAIN", r.Prefix), join(above, "registry")...)
		case r.Location != "" && !place.MatchString(r.Location):
			return d.fail(fmt.Errorf("location %q: want HOST[:PORT][/PATH]", r.Location), join(above, "registry")...)
		case wildcard && r.Location != "":
			return d.fail(fmt.Errorf("prefix %q takes no location", r.Prefix), join(above, "registry")...)
		case seen[r.Prefix]:
			return d.fail(fmt.Errorf("prefix %q occurs twice", r.Prefix), join(above, "registry")...)
		}
		seen[r.Prefix] = true
		host := registry.Host{Match: r.Prefix, Blocked: r.Blocked}
		host.PlainHTTP = r.Insecure // the Hub's "insecure" is HTTP, not TLS without verification
		if r.Location != r.Prefix {
			host.Location = r.Location
		}
		for _, m := range r.Mirrors {
			if !place.MatchString(m.Location) {
				return d.fail(fmt.Errorf("mirror %q: want HOST[:PORT][/PATH]", m.Location), join(above, "registry", "mirror")...)
			}
			host.Mirrors = append(host.Mirrors, registry.Mirror{Location: m.Location, Access: registry.Access{PlainHTTP: m.Insecure}})
		}
		c.Hosts = append(c.Hosts, host)
	}
	return nil
}

func join(above []string, key ...string) []string {
	return append(above[:len(above):len(above)], key...)
}
