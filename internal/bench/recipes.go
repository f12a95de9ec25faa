package bench

// recipe is how an image of the corpus is made.
type recipe struct {
	name   string
	about  string
	heavy  bool // only made when asked for by name
	layers []layerRecipe
}

// layerRecipe is one layer: Debian packages with all that they depend on and the
// layers below do not have, or content that is generated.
type layerRecipe struct {
	packages []string // nil for a generated layer
	alone    bool     // without their dependencies
	extra    []file   // written after the packages
	filler   int64    // bytes of generated files instead of packages
	seed     uint64   // of the filler
}

// file is a small file, or a hard link, that a recipe adds.
type file struct {
	name, content string
	link          string // hard link to this name
	mode          int64
}

// basePackages are about what debian:slim holds.
func basePackages() []string {
	return []string{
		"base-files", "base-passwd", "bash", "bsdutils", "coreutils", "dash", "debconf", "debian-archive-keyring", "debianutils",
		"diffutils", "dpkg", "e2fsprogs", "findutils", "gpgv", "grep", "gzip", "hostname", "init-system-helpers", "libc-bin",
		"login", "logsave", "mawk", "mount", "ncurses-base", "ncurses-bin", "passwd", "perl-base", "sed", "sysvinit-utils",
		"tar", "tzdata", "usr-is-merged", "util-linux", "apt",
	}
}

// recipes are the images of `--corpus debian`: the shapes of well-known images.
func recipes() []recipe {
	base := layerRecipe{packages: basePackages()}
	return []recipe{
		{name: "busybox", about: "one static program under many names, 1 layer", layers: []layerRecipe{
			{packages: []string{"busybox-static"}, alone: true, extra: applets()},
		}},
		{name: "debian-slim", about: "a minimal distribution, 1 layer", layers: []layerRecipe{base}},
		{name: "nginx", about: "a distribution, a server and small layers on top, 6 layers", layers: append([]layerRecipe{
			base, {packages: []string{"nginx", "curl", "ca-certificates", "gettext-base"}},
		}, scripts(4)...)},
		{name: "prometheus", about: "few large files, 3 layers", layers: []layerRecipe{
			base, {packages: []string{"prometheus"}}, {packages: []string{"prometheus-alertmanager", "prometheus-blackbox-exporter"}},
		}},
		{name: "python", about: "an interpreter and its scientific libraries, 4 layers", layers: []layerRecipe{
			base, {packages: []string{"python3"}}, {packages: []string{"python3-numpy", "python3-scipy"}}, {packages: []string{"python3-pandas"}},
		}},
		{name: "toolchain", about: "compilers: 25,000 files, 6 layers", layers: append([]layerRecipe{
			base,
			{packages: []string{"ca-certificates", "curl", "gnupg", "netbase", "wget"}},
			{packages: []string{"git", "mercurial", "openssh-client", "subversion"}},
			{packages: []string{"g++", "gcc", "libc6-dev", "make", "pkg-config"}},
			{packages: []string{"golang-go"}},
		}, scripts(1)...)},
		{name: "big", about: "an office, typesetting and compilers, 20 and more layers of several GB", heavy: true, layers: append([]layerRecipe{
			base,
			{packages: []string{"texlive-fonts-extra", "texlive-latex-extra"}},
			{packages: []string{"g++", "gcc", "make", "cmake", "gdb"}},
			{packages: []string{"golang-go"}},
			{packages: []string{"rustc", "cargo"}},
			{packages: []string{"openjdk-17-jdk-headless"}},
			{packages: []string{"llvm-15-dev", "clang-15"}},
			{packages: []string{"libreoffice"}},
			{packages: []string{"python3-scipy", "python3-pandas", "python3-matplotlib"}},
			{packages: []string{"octave"}},
			{packages: []string{"gimp"}},
			{packages: []string{"postgresql"}},
		}, scripts(10)...)},
		{name: "one-layer-2g", about: "generated: 1 layer of 2 GB", heavy: true, layers: []layerRecipe{{filler: 2 << 30, seed: 1}}},
		{name: "100-layers", about: "generated: 100 layers of 20 MB", heavy: true, layers: fillers(100, 20<<20)},
	}
}

func fillers(count int, sizeBytes int64) []layerRecipe {
	layers := make([]layerRecipe, count)
	for i := range layers {
		layers[i] = layerRecipe{filler: sizeBytes, seed: uint64(i) + 2}
	}
	return layers
}

// scripts are layers of one small file each, as the last lines of a Dockerfile make them.
func scripts(count int) []layerRecipe {
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"}
	layers := make([]layerRecipe, count)
	for i := range layers {
		layers[i].extra = []file{{name: "docker-entrypoint.d/" + names[i] + ".sh", content: "#!/bin/sh\nexec \"$@\"\n", mode: 0o755}}
	}
	return layers
}

func applets() []file {
	names := []string{
		"ash", "awk", "base64", "basename", "cat", "chgrp", "chmod", "chown", "clear", "cmp", "cp", "cut", "date", "dd", "df", "diff", "dirname",
		"dmesg", "du", "echo", "env", "expr", "false", "find", "free", "grep", "gunzip", "gzip", "head", "hostname", "id", "ip", "kill", "less",
		"ln", "logger", "ls", "md5sum", "mkdir", "mknod", "mktemp", "more", "mount", "mv", "nc", "nslookup", "od", "ping", "printf", "ps", "pwd",
		"readlink", "realpath", "rm", "rmdir", "sed", "seq", "sh", "sha256sum", "sleep", "sort", "stat", "strings", "stty", "sync", "tail", "tar",
		"tee", "telnet", "test", "time", "timeout", "top", "touch", "tr", "true", "tty", "umount", "uname", "uniq", "unzip", "uptime", "vi", "wc",
		"wget", "which", "who", "whoami", "xargs", "yes", "zcat",
	}
	files := make([]file, len(names))
	for i, name := range names {
		files[i] = file{name: "usr/bin/" + name, link: "usr/bin/busybox"}
	}
	return files
}

// LightNames returns the corpus's images that are not heavy.
func (c *Corpus) LightNames() (names []string) {
	for _, r := range recipes() {
		if !r.heavy && c.Image(r.name) != nil {
			names = append(names, r.name)
		}
	}
	return names
}
