package demo

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// libraryDirs is where the dynamic linkers of Debian and its kin look.
func libraryDirs() []string {
	dirs := []string{"/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"}
	for _, pattern := range []string{"/lib/*-linux-gnu*", "/usr/lib/*-linux-gnu*"} {
		found, _ := filepath.Glob(pattern) // the pattern is well-formed
		dirs = append(dirs, found...)
	}
	return dirs
}

// withLibraries returns the programs, the libraries that they need and the
// dynamic linker, as paths of this machine.
func withLibraries(programs []string) ([]string, error) {
	wanted := slices.Clone(programs)
	dirs := libraryDirs()
	for i := 0; i < len(wanted); i++ {
		needed, linker, err := dependencies(wanted[i])
		if err != nil {
			return nil, err
		}
		if linker != "" && !slices.Contains(wanted, linker) {
			wanted = append(wanted, linker)
		}
		for _, name := range needed {
			path := lookIn(dirs, name)
			if path == "" {
				return nil, fmt.Errorf("find library %s of %s: not in %v", name, wanted[i], dirs)
			}
			if !slices.Contains(wanted, path) {
				wanted = append(wanted, path)
			}
		}
	}
	return wanted, nil
}

// dependencies returns the names of the libraries that an ELF file needs, and
// its dynamic linker.
func dependencies(path string) (needed []string, linker string, err error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, "", fmt.Errorf("read program %s: %w", path, err)
	}
	defer func() { _ = f.Close() }()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz > 1 && p.Filesz < 4096 {
			name := make([]byte, p.Filesz)
			if _, err := p.ReadAt(name, 0); err != nil {
				return nil, "", fmt.Errorf("read program %s: %w", path, err)
			}
			linker = string(name[:len(name)-1])
		}
	}
	needed, err = f.ImportedLibraries()
	if err != nil {
		return nil, "", fmt.Errorf("read program %s: %w", path, err)
	}
	return needed, linker, nil
}

func lookIn(dirs []string, name string) string {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}
