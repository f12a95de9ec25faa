package guest

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/BurntSushi/toml"
)

// hubFile is the part of the Hub's configuration that concerns images.
type hubFile struct {
	Socket string   `toml:"socket"`
	Image  hubImage `toml:"image"`
}

type hubImage struct {
	WorkDir        string          `toml:"work_dir"`
	CredentialsURI string          `toml:"authenticated_registry_credentials_uri"`
	RegistryURI    string          `toml:"registry_configuration_uri"`
	Registry       *registriesFile `toml:"registry_config"`
	MaxLayers      *int            `toml:"max_concurrent_layer_downloads_per_image"`
	Proxy          struct {
		HTTPS string `toml:"https_proxy"`
		HTTP  string `toml:"http_proxy"`
		No    string `toml:"no_proxy"`
	} `toml:"image_pull_proxy"`
	Roots []string `toml:"extra_root_certificates"`
}

// isHubSection tells whether the Hub has a section or a key of that name.
func isHubSection(name string) bool {
	return name == "socket" || name == "image" || isOtherSection(name)
}

// isOtherSection tells whether the Hub's section has nothing to do with images.
func isOtherSection(name string) bool {
	switch name {
	case "kbc", "aa", "credentials", "log", "skip_sealed_secret_verification":
		return true
	}
	return false
}

// refuseHub says why a key of the Hub's file is not taken; nil lets it pass.
func refuseHub(key toml.Key) error {
	if isOtherSection(key[0]) {
		return nil
	}
	if len(key) < 2 || key[0] != "image" {
		return errors.New("unknown to the Confidential Data Hub")
	}
	switch key[1] {
	case "image_security_policy", "image_security_policy_uri", "sigstore_config", "sigstore_config_uri":
		return fmt.Errorf("signature policies are %w: remove the key, and pin images by digest (--require-digest) where the policy stood", ErrUnsupported)
	case "kbc", "kbs_uri":
		return fmt.Errorf("encrypted images and their key providers are %w: remove the key", ErrUnsupported)
	case "registry_config":
		return unknownRegistryKey(key[2:])
	}
	return errors.New("unknown to the Confidential Data Hub")
}

func parseHub(d *document) (*Config, error) {
	var file hubFile
	if err := d.decode(&file, refuseHub); err != nil {
		return nil, err
	}
	image := &file.Image
	c := &Config{Store: image.WorkDir}
	for _, name := range d.sections() {
		if isOtherSection(name) {
			c.Ignored = append(c.Ignored, name)
		}
	}
	if file.Socket != "" {
		if !strings.HasPrefix(file.Socket, "unix:///") {
			return nil, d.fail(errors.New("want unix:///PATH"), "socket")
		}
		c.Sockets = []string{file.Socket}
	}
	if c.Store != "" && !filepath.IsAbs(c.Store) {
		return nil, d.fail(errors.New("want an absolute path"), "image", "work_dir")
	}
	if image.CredentialsURI != "" {
		path, err := localPath(image.CredentialsURI)
		if err != nil {
			return nil, d.fail(err, "image", "authenticated_registry_credentials_uri")
		}
		c.AuthFiles = []string{path}
	}
	if image.MaxLayers != nil {
		if *image.MaxLayers < 1 || *image.MaxLayers > 1<<10 {
			return nil, d.fail(errors.New("want a number from 1 to 1024"), "image", "max_concurrent_layer_downloads_per_image")
		}
		c.MaxLayers = *image.MaxLayers
	}
	for i, root := range image.Roots {
		if err := checkPEM(root); err != nil {
			return nil, d.fail(fmt.Errorf("certificate %d: %w", i+1, err), "image", "extra_root_certificates")
		}
		c.CAs = append(append(c.CAs, root...), '\n')
	}
	c.setProxy("HTTPS_PROXY", image.Proxy.HTTPS)
	c.setProxy("HTTP_PROXY", image.Proxy.HTTP)
	c.setProxy("NO_PROXY", image.Proxy.No)
	return c, c.addRegistries(d, image)
}

func (c *Config) setProxy(name, value string) {
	if value == "" {
		return
	}
	if c.ExtraEnv == nil {
		c.ExtraEnv = map[string]string{}
	}
	c.ExtraEnv[name] = value
}

// addRegistries takes the inline table or else the file of the URI, as the Hub.
func (c *Config) addRegistries(d *document, image *hubImage) error {
	if image.Registry != nil {
		return image.Registry.addTo(c, d, "image", "registry_config")
	}
	if image.RegistryURI == "" {
		return nil
	}
	path, err := localPath(image.RegistryURI)
	if err != nil {
		return d.fail(err, "image", "registry_configuration_uri")
	}
	text, err := readFile(path)
	if err != nil {
		return d.fail(err, "image", "registry_configuration_uri")
	}
	return parseRegistries(c, path, text)
}

// localPath returns the path of a resource URI of the Hub.
func localPath(uri string) (string, error) {
	scheme, path, ok := strings.Cut(uri, "://")
	switch {
	case !ok:
		return uri, nil
	case strings.HasPrefix(scheme, "kbs"):
		return "", fmt.Errorf("resources of a key broker (%s://) are %w: put the file into the guest and name its path", scheme, ErrUnsupported)
	case scheme != "file" || !filepath.IsAbs(path):
		return "", errors.New("want a path or file:///PATH")
	}
	return path, nil
}

// checkPEM makes sure that text has certificates and nothing that is broken.
func checkPEM(text string) error {
	count := 0
	for rest := []byte(text); ; count++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return errors.New("PEM block is not a CERTIFICATE")
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("parse certificate: %w", err)
		}
	}
	if count == 0 {
		return errors.New("no PEM certificate")
	}
	return nil
}
