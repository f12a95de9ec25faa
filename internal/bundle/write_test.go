package bundle

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestWrite(t *testing.T) {
	t.Parallel()
	spec := &specs.Spec{Version: specVersion, Hostname: "box"}
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("untouched"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, before := range map[string]func(config string) error{
		"new":           func(string) error { return nil },
		"replaced":      func(config string) error { return os.WriteFile(config, []byte("old"), 0o644) },
		"link":          func(config string) error { return os.Symlink(victim, config) },
		"dangling link": func(config string) error { return os.Symlink("/nowhere/at/all", config) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			config := filepath.Join(dir, ConfigName)
			if err := before(config); err != nil {
				t.Fatal(err)
			}
			if err := Write(dir, spec); err != nil {
				t.Fatal(err)
			}
			info, err := os.Lstat(config)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode() != 0o600 {
				t.Errorf("mode is %v, want a file of 0600", info.Mode())
			}
			content, err := os.ReadFile(config)
			if err != nil {
				t.Fatal(err)
			}
			var got specs.Spec
			if err := json.Unmarshal(content, &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&got, spec); diff != "" {
				t.Error(diff)
			}
			onlyConfig(t, dir)
		})
	}
	t.Cleanup(func() {
		if content, err := os.ReadFile(victim); string(content) != "untouched" {
			t.Errorf("the link's target has %q, %v", content, err)
		}
	})
}

func TestWriteRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	occupied := t.TempDir()
	if err := os.Mkdir(filepath.Join(occupied, ConfigName), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, bundle := range map[string]string{
		"link": link, "missing": filepath.Join(dir, "no"), "file": filepath.Join(dir, "file"), "config is a directory": occupied,
	} {
		if name == "file" {
			if err := os.WriteFile(bundle, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := Write(bundle, &specs.Spec{}); err == nil {
			t.Errorf("%s: written", name)
		}
	}
	onlyConfig(t, occupied)
}

// onlyConfig asserts that nothing temporary is left.
func onlyConfig(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != ConfigName {
		t.Errorf("bundle has %v, want %s alone", entries, ConfigName)
	}
}
