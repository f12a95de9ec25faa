package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// authFile is a credential file: docker's config.json and containers' auth.json
// (containers-auth.json(5)).
type authFile struct {
	Auths       map[string]authEntry `json:"auths"`
	CredsStore  string               `json:"credsStore"`
	CredHelpers map[string]string    `json:"credHelpers"`
}

// authEntry is kept undecoded until it is the one that is needed: what is odd in
// another registry's entry must not stand in the way.
type authEntry struct{ json.RawMessage }

// credentials returns what opens the endpoint, empty when nothing is known. The
// files are read anew each time: they change while a client lives. An error, with
// nothing found, is that of the files that could not be read.
func (e *endpoint) credentials(ctx context.Context) (Credentials, error) {
	if e.access.Credentials != nil {
		return *e.access.Credentials, nil
	}
	files, named := e.client.options.AuthFiles, true
	if files == nil {
		files, named = defaultAuthFiles(os.Getenv), false
	}
	var problems []error
	for _, path := range files {
		file, err := readAuthFile(path)
		if err != nil {
			if !named && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
				continue
			}
			problems = append(problems, err)
			continue
		}
		found, err := file.lookup(ctx, e.keyHost, e.repository, e.client.options.helper())
		if err != nil {
			problems = append(problems, fmt.Errorf("look up credentials for %s in %s: %w", e.keyHost, path, err))
			continue
		}
		if !found.empty() {
			return found, nil
		}
	}
	if err := errors.Join(problems...); err != nil {
		e.client.options.Log.LogAttrs(ctx, slog.LevelWarn, "credentials not read", slog.String("host", e.keyHost), slog.String("reason", err.Error()))
		return Credentials{}, err
	}
	return Credentials{}, nil
}

// defaultAuthFiles returns where docker's and containers' tools keep credentials,
// in the order in which they are asked.
func defaultAuthFiles(getenv func(string) string) []string {
	var files []string
	if path := getenv("REGISTRY_AUTH_FILE"); path != "" {
		files = append(files, path)
	}
	if dir := getenv("XDG_RUNTIME_DIR"); dir != "" {
		files = append(files, filepath.Join(dir, "containers/auth.json"))
	}
	home := getenv("HOME")
	if dir := getenv("XDG_CONFIG_HOME"); dir != "" {
		files = append(files, filepath.Join(dir, "containers/auth.json"))
	} else if home != "" {
		files = append(files, filepath.Join(home, ".config/containers/auth.json"))
	}
	if dir := getenv("DOCKER_CONFIG"); dir != "" {
		files = append(files, filepath.Join(dir, "config.json"))
	} else if home != "" {
		files = append(files, filepath.Join(home, ".docker/config.json"))
	}
	return files
}

func readAuthFile(path string) (*authFile, error) {
	raw, err := readFile(path, maxCredentialBytes)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	file, err := decodeAuthFile(raw)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %s: %w", path, err)
	}
	return file, nil
}

func decodeAuthFile(raw []byte) (*authFile, error) {
	if len(strings.TrimSpace(string(raw))) == 0 {
		return &authFile{}, nil
	}
	var file authFile
	if json.Unmarshal(raw, &file) != nil {
		return nil, errors.New("not a credential file in JSON") // the decoder's words could quote a secret
	}
	return &file, nil
}

// lookup returns the credentials for repository on host: from the helper of its
// host, from the entry with the longest key that names it, or from the file's
// store of all others.
func (f *authFile) lookup(ctx context.Context, host, repository string, run helperFunc) (Credentials, error) {
	if helper, ok := longest(f.CredHelpers, host, repository); ok && helper != "" {
		found, err := run(ctx, helper, serverName(host))
		if err != nil || !found.empty() {
			return found, err
		}
	}
	if entry, ok := longest(f.Auths, host, repository); ok {
		found, err := entry.decode()
		if err != nil || !found.empty() {
			return found, err
		}
	}
	if f.CredsStore == "" {
		return Credentials{}, nil
	}
	return run(ctx, f.CredsStore, serverName(host))
}

// serverName is how helpers know a host.
func serverName(host string) string {
	if host == hubHost {
		return hubServerName
	}
	return host
}

// longest returns the value of the key that names the most of host/repository.
func longest[V any](m map[string]V, host, repository string) (value V, ok bool) {
	name := host + "/" + repository
	best, bestKey := -1, ""
	for key, v := range m {
		normal := normalKey(key)
		if name != normal && !strings.HasPrefix(name, normal+"/") {
			continue
		}
		// Of several spellings of one key the plainest wins, then the first.
		plainer := key == normal || bestKey != normal && key < bestKey
		if len(normal) > best || len(normal) == best && plainer {
			best, bestKey, value, ok = len(normal), key, v, true
		}
	}
	return value, ok
}

// normalKey turns a key of a credential file into host[/path]: docker writes
// https://index.docker.io/v1/, containers' tools docker.io/library.
func normalKey(key string) string {
	rest := strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	rest = strings.TrimRight(rest, "/")
	host, path, _ := strings.Cut(rest, "/")
	if path == "v1" || path == "v2" {
		path = ""
	}
	if path == "" {
		return canonicalHost(host)
	}
	return canonicalHost(host) + "/" + path
}

// decode reads one entry. An entry without anything in it is empty, not wrong.
func (a authEntry) decode() (Credentials, error) {
	var entry struct {
		Auth          string `json:"auth"`
		Username      string `json:"username"`
		Password      string `json:"password"`
		IdentityToken string `json:"identitytoken"`
		RegistryToken string `json:"registrytoken"`
	}
	if json.Unmarshal(a.RawMessage, &entry) != nil {
		return Credentials{}, errors.New("entry is not an object of strings")
	}
	found := Credentials{Username: entry.Username, Password: entry.Password, IdentityToken: entry.IdentityToken, RegistryToken: entry.RegistryToken}
	if entry.Auth == "" {
		return found, nil
	}
	user, password, err := decodeAuth(entry.Auth)
	if err != nil {
		return Credentials{}, err
	}
	found.Username, found.Password = user, password
	return found, nil
}

// decodeAuth reads base64 of user:password, with or without padding, with the
// line ends that shells leave in and around it.
func decodeAuth(auth string) (user, password string, err error) {
	auth = strings.TrimRight(strings.TrimSpace(auth), "=")
	plain, err := base64.RawStdEncoding.DecodeString(auth)
	if err != nil {
		if plain, err = base64.RawURLEncoding.DecodeString(auth); err != nil {
			return "", "", errors.New("auth is not base64")
		}
	}
	user, password, ok := strings.Cut(string(plain), ":")
	if !ok {
		return "", "", errors.New("auth is not user:password in base64")
	}
	return user, strings.TrimRight(password, "\x00\r\n"), nil
}
