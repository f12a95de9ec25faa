package demo

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/stream"
)

// image is one that the demonstration makes, and what it runs in it.
type image struct {
	name   string
	about  string
	config oci.ImageConfig
	layers []built
}

// built is a layer that has been written to the layout.
type built struct {
	descriptor oci.Descriptor
	diffID     oci.DiffID
}

// shellPrograms are what the shell image is made of.
func shellPrograms() []string {
	var programs []string
	for _, name := range []string{"sh", "cat", "ls", "uname", "id", "head", "wc", "true"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue // the image does without
		}
		if path, err = filepath.EvalSymlinks(path); err == nil {
			programs = append(programs, path)
		}
	}
	return programs
}

// makeImages writes the images of the demonstration, each as a layout of its own
// below dir, as the embedded registry wants repositories. scratch holds the blobs
// that they share.
func makeImages(ctx context.Context, scratch *ocidir.Layout, dir string) ([]image, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("make images: %w", err)
	}
	programs, err := withLibraries(shellPrograms())
	if err != nil {
		return nil, err
	}
	own, err := withLibraries([]string{self}) // none, when it is built as the Makefile does
	if err != nil {
		return nil, err
	}
	var problems []error
	layer := func(fill func(*tar.Writer) error) built {
		b, err := writeLayer(ctx, scratch, fill)
		problems = append(problems, err)
		return b
	}
	drayLayer := layer(func(w *tar.Writer) error {
		err := addFile(w, self, "dray", 0o755)
		for _, library := range own[1:] {
			err = errors.Join(err, addFile(w, library, strings.TrimPrefix(library, "/"), 0o755))
		}
		return err
	})
	base := layer(func(w *tar.Writer) error { return addPrograms(w, programs) })
	etc := layer(addEtc)
	script := layer(func(w *tar.Writer) error {
		return addBytes(w, strings.TrimPrefix(merged("/bin/hello"), "/"), 0o755, []byte("#!/bin/sh\necho \"hello from $(uname -s), as user $(id -u), with $(ls / | wc -l) entries in /\"\n"))
	})
	headers := layer(func(w *tar.Writer) error {
		return addTree(w, "/usr/include", "usr/include", 20<<20)
	})
	docs := layer(func(w *tar.Writer) error { return addTree(w, "/usr/share", "usr/share", 40<<20) })
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	path := []string{"PATH=/usr/bin:/bin"}
	images := []image{
		{"demo/one", "one program, and nothing else", oci.ImageConfig{Entrypoint: []string{"/dray", "--version"}}, []built{drayLayer}},
		{"demo/shell", "a shell with its libraries", oci.ImageConfig{Cmd: []string{"/bin/sh", "/bin/hello"}, Env: path}, []built{base, etc, script}},
		{"demo/toolbox", "the same, and thousands of files", oci.ImageConfig{Cmd: []string{"/bin/sh", "-c", "ls /usr/include /usr/share | wc -l"}, Env: path}, []built{base, etc, script, headers, docs}},
	}
	for _, i := range images {
		if err := writeImage(ctx, scratch, filepath.Join(dir, i.name), i); err != nil {
			return nil, err
		}
	}
	return images, nil
}

// writeImage makes a layout of one image.
func writeImage(ctx context.Context, scratch *ocidir.Layout, dir string, i image) (err error) {
	layout, err := ocidir.Create(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, layout.Close()) }()
	host := oci.HostPlatform()
	config := oci.Image{OS: host.OS, Architecture: host.Architecture, Config: i.config, RootFS: oci.RootFS{Type: "layers"}}
	manifest := oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest}
	for _, l := range i.layers {
		if _, err := layout.LinkBlob(ctx, scratch, l.descriptor.Digest); err != nil {
			return err
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.diffID)
		manifest.Layers = append(manifest.Layers, l.descriptor)
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("make image %s: %w", i.name, err)
	}
	if manifest.Config, err = layout.PutBlob(ctx, oci.Descriptor{Digest: oci.DigestBytes(raw), Size: int64(len(raw))}, bytes.NewReader(raw)); err != nil {
		return err
	}
	manifest.Config.MediaType = oci.MediaTypeConfig
	if raw, err = json.Marshal(manifest); err != nil {
		return fmt.Errorf("make image %s: %w", i.name, err)
	}
	_, err = layout.PutManifest(ctx, oci.DefaultTag, oci.MediaTypeManifest, raw)
	return err
}

// writeLayer streams a gzip layer into the layout.
func writeLayer(ctx context.Context, layout *ocidir.Layout, fill func(*tar.Writer) error) (built, error) {
	reader, writer := io.Pipe()
	diff := sha256.New()
	done := make(chan error, 1) // one value: the writer's end
	go func() {
		gz := gzip.NewWriter(writer)
		tw := tar.NewWriter(io.MultiWriter(gz, diff))
		err := fill(tw)
		err = errors.Join(err, tw.Close(), gz.Close())
		_ = writer.CloseWithError(err) // never fails
		done <- err
	}()
	descriptor, err := layout.PutBlob(ctx, oci.Descriptor{Size: stream.AnySize}, reader)
	_ = reader.CloseWithError(err) // never fails; a writer that is not done fails now
	if err := errors.Join(err, <-done); err != nil {
		return built{}, fmt.Errorf("make layer: %w", err)
	}
	descriptor.MediaType = oci.MediaTypeLayerGz
	return built{descriptor, oci.DiffID(oci.DigestOf(oci.SHA256, diff))}, nil
}

// addPrograms adds programs and libraries where they are on this machine, with
// the links of a merged /usr, and /bin/sh.
func addPrograms(w *tar.Writer, paths []string) error {
	for _, dir := range []string{"bin", "lib", "lib64", "sbin"} {
		if target, err := os.Readlink("/" + dir); err == nil {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: dir, Linkname: target, Mode: 0o777}); err != nil {
				return err
			}
		}
	}
	var written []string
	for _, path := range paths {
		name := strings.TrimPrefix(merged(path), "/")
		if slices.Contains(written, name) {
			continue
		}
		written = append(written, name)
		if err := addFile(w, path, name, 0o755); err != nil {
			return err
		}
	}
	if len(paths) > 0 && filepath.Base(paths[0]) != "sh" { // sh is dash, or bash, or busybox
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: strings.TrimPrefix(merged("/bin/sh"), "/"), Linkname: filepath.Base(paths[0]), Mode: 0o777})
	}
	return nil
}

// merged returns the path with its directory resolved: /usr/bin/x for /bin/x
// where /bin is a link.
func merged(path string) string {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return path
	}
	return filepath.Join(dir, filepath.Base(path))
}

func addEtc(w *tar.Writer) error {
	files := []struct{ name, content string }{
		{"etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"},
		{"etc/group", "root:x:0:\nnogroup:x:65534:\n"},
		{"etc/hostname", "demo\n"},
	}
	for _, dir := range []string{"etc/", "root/", "proc/", "sys/", "dev/", "tmp/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := addBytes(w, f.name, 0o644, []byte(f.content)); err != nil {
			return err
		}
	}
	return nil
}

func addBytes(w *tar.Writer, name string, mode int64, content []byte) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// addFile adds a file of this machine under another name.
func addFile(w *tar.Writer, path, name string, mode int64) error {
	f, err := os.Open(path) //nolint:gosec // a file of this machine that the demonstration chose
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: info.Size(), ModTime: info.ModTime()}); err != nil {
		return err
	}
	_, err = io.CopyN(w, f, info.Size())
	return err
}

// addTree adds the readable files of a directory until they have limitBytes.
func addTree(w *tar.Writer, dir, as string, limitBytes int64) error {
	var sizeBytes int64
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || sizeBytes >= limitBytes {
			return nil //nolint:nilerr // what cannot be read is not part of the demonstration
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		name = filepath.Join(as, name)
		info, err := d.Info()
		if err != nil {
			return nil //nolint:nilerr // it went away meanwhile
		}
		switch {
		case d.IsDir():
			return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: info.ModTime()})
		case info.Mode().IsRegular() && info.Mode().Perm()&0o004 != 0:
			sizeBytes += info.Size()
			return addFile(w, path, name, int64(info.Mode().Perm()))
		}
		return nil
	})
}
