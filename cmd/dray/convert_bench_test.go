package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/testkit"
)

// rivalsDir is where scripts/rivals puts its programs: an environment variable.
const rivalsDir = "DRAY_BENCH_RIVALS"

// cost is what a program took.
type cost struct {
	cpu, wall time.Duration
	bytes     int64 // of the layer that it made
}

// BenchmarkConvertRival converts the Go tree, one layer of gzip, with ctr-remote and
// with dray, by turns, and fails where dray takes more of ctr-remote's than was promised.
// Processor time of containerd, which ctr-remote lets compute digests and write, is
// shown and not held against it.
func BenchmarkConvertRival(b *testing.B) {
	dir := os.Getenv(rivalsDir)
	if dir == "" {
		b.Skip(rivalsDir + " does not say where scripts/rivals has put ctr-remote and containerd")
	}
	layout := goImage(b)
	r := startRival(b, dir, layout)
	for _, bench := range []struct {
		form     string
		variants []variant
	}{
		{"--estargz", []variant{
			{"dray", nil, cost{cpu: 250, wall: 300}, 1.03},
			{"dray-9", []string{"--estargz-compression-level", "9"}, cost{cpu: 900}, 1},
		}},
		{"--zstdchunked", []variant{
			{"dray", nil, cost{cpu: 900}, 0},
			{"dray-containerd", []string{"--zstdchunked-flavour", "containerd"}, cost{cpu: 900}, 0},
		}},
	} {
		b.Run(strings.TrimPrefix(bench.form, "--"), func(b *testing.B) {
			var theirs []cost
			var daemon []time.Duration
			ours := make([][]cost, len(bench.variants))
			for b.Loop() {
				before := processCPU(b, r.daemon)
				theirs = append(theirs, r.convert(b, bench.form))
				daemon = append(daemon, processCPU(b, r.daemon)-before)
				r.forget(b)
				for i, v := range bench.variants {
					ours[i] = append(ours[i], drayConvert(b, layout, append([]string{bench.form}, v.flags...)))
				}
			}
			b.ReportMetric(0, "ns/op") // says nothing
			b.ReportMetric(medianOf(daemon, func(d time.Duration) time.Duration { return d }).Seconds(), "containerd-cpu-s")
			report(b, "ctr-remote", theirs)
			for i, v := range bench.variants {
				report(b, v.name, ours[i])
				v.hold(b, ours[i], theirs)
			}
		})
	}
}

// variant is a way to have dray convert.
type variant struct {
	name      string
	flags     []string
	most      cost    // in thousandths of the rival's; 0: not promised
	mostBytes float64 // of the rival's
}

func report(b *testing.B, name string, costs []cost) {
	b.Helper()
	b.ReportMetric(medianOf(costs, func(c cost) time.Duration { return c.cpu }).Seconds(), name+"-cpu-s")
	b.ReportMetric(medianOf(costs, func(c cost) time.Duration { return c.wall }).Seconds(), name+"-wall-s")
	b.ReportMetric(float64(medianOf(costs, func(c cost) int64 { return c.bytes })), name+"-B")
}

// hold holds costs against a rival's. Ratios are of neighbours: what disturbs one run
// disturbs the other.
func (v *variant) hold(b *testing.B, ours, theirs []cost) {
	b.Helper()
	for _, ratio := range []struct {
		name string
		of   func(c cost) float64
		most float64
	}{
		{"cpu", func(c cost) float64 { return c.cpu.Seconds() }, float64(v.most.cpu) / 1000},
		{"wall", func(c cost) float64 { return c.wall.Seconds() }, float64(v.most.wall) / 1000},
		{"size", func(c cost) float64 { return float64(c.bytes) }, v.mostBytes},
	} {
		all := make([]float64, len(ours))
		for i := range ours {
			all[i] = ratio.of(ours[i]) / ratio.of(theirs[i])
		}
		got := medianOf(all, func(f float64) float64 { return f })
		b.ReportMetric(got, v.name+"-"+ratio.name+"-ratio")
		if ratio.most > 0 && got > ratio.most {
			b.Errorf("%s: %s %.3f of ctr-remote's [%.3f-%.3f], promised %.2f", v.name, ratio.name, got, slices.Min(all), slices.Max(all), ratio.most)
		}
	}
}

// goImage makes a layout with an image of one layer: the Go tree that runs the test.
func goImage(b *testing.B) string {
	b.Helper()
	root := runtime.GOROOT() //nolint:staticcheck // the tree is wanted, wherever it is
	work := b.TempDir()
	blob := filepath.Join(work, "layer.tar.gz")
	plain := benchOutput(b, "sh", "-c", `tar --sort=name -C "$1" -cf "$2/layer.tar" . && gzip -6 -c "$2/layer.tar" >"$3" && sha256sum <"$2/layer.tar" && rm "$2/layer.tar"`, "sh", root, work, blob)
	layout := filepath.Join(work, "layout")
	l := testkit.LayoutAt(b, layout)
	put := func(mediaType string, raw []byte) oci.Descriptor {
		d := testkit.PutBlob(b, l, raw)
		d.MediaType = mediaType
		return d
	}
	raw, err := os.ReadFile(blob)
	if err != nil {
		b.Fatal(err)
	}
	layer := put(oci.MediaTypeLayerGz, raw)
	config := put(oci.MediaTypeConfig, fmt.Appendf(nil, `{"architecture":%q,"os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}`, runtime.GOARCH, strings.Fields(plain)[0]))
	manifest, err := json.Marshal(oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Config: config, Layers: []oci.Descriptor{layer}})
	if err != nil {
		b.Fatal(err)
	}
	testkit.PutRaw(b, l, "go", oci.MediaTypeManifest, manifest)
	return layout
}

// drayConvert converts the image from layout to layout.
func drayConvert(b *testing.B, layout string, flags []string) cost {
	b.Helper()
	target := filepath.Join(b.TempDir(), "converted")
	args := append([]string{"image", "convert", "--oci", "--conversions", "none"}, flags...)
	cmd := exec.CommandContext(b.Context(), "/proc/self/exe", append(args, "local://"+layout+":go", "local://"+target)...)
	cmd.Args[0] = "dray" // the test binary is the program under that name
	cmd.Env = append(os.Environ(), "DRAY_CONFIG=")
	c := measured(b, cmd)
	c.bytes = layerBytes(b, target, "latest")
	if err := os.RemoveAll(target); err != nil {
		b.Fatal(err)
	}
	return c
}

// rival is ctr-remote with a containerd of its own.
type rival struct {
	client, socket string
	daemon         int // process ID
}

const (
	rivalSource = "example.com/go:go"
	rivalTarget = "example.com/go:converted"
)

func startRival(b *testing.B, dir, layout string) *rival {
	b.Helper()
	work := b.TempDir()
	r := &rival{client: filepath.Join(dir, "ctr-remote"), socket: filepath.Join(work, "socket")}
	config := filepath.Join(work, "config.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\", \"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		filepath.Join(work, "root"), filepath.Join(work, "state"), r.socket)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	daemon := exec.CommandContext(b.Context(), filepath.Join(dir, "containerd"), "-c", config, "-l", "error")
	var said bytes.Buffer
	daemon.Stderr = &said
	if err := daemon.Start(); err != nil {
		b.Fatal(err)
	}
	r.daemon = daemon.Process.Pid
	b.Cleanup(func() {
		_ = daemon.Process.Signal(syscall.SIGTERM)
		_ = daemon.Wait()
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if r.command(b, "images", "ls", "-q").Run() == nil {
			break
		}
		if time.Now().After(deadline) {
			b.Fatalf("containerd does not answer: %s", said.String())
		}
	}
	archive := filepath.Join(work, "go.tar")
	benchOutput(b, "tar", "-C", layout, "-cf", archive, ".")
	measured(b, r.command(b, "images", "import", "--local", "--no-unpack", "--base-name", "example.com/go", archive))
	return r
}

func (r *rival) command(b *testing.B, args ...string) *exec.Cmd {
	b.Helper()
	return exec.CommandContext(b.Context(), r.client, append([]string{"--address", r.socket}, args...)...)
}

// convert converts the image in containerd's content store.
func (r *rival) convert(b *testing.B, form string) cost {
	b.Helper()
	c := measured(b, r.command(b, "images", "convert", "--oci", form, rivalSource, rivalTarget))
	archive := filepath.Join(b.TempDir(), "converted.tar")
	measured(b, r.command(b, "images", "export", archive, rivalTarget))
	layout := filepath.Join(b.TempDir(), "layout")
	if err := os.Mkdir(layout, 0o700); err != nil {
		b.Fatal(err)
	}
	benchOutput(b, "tar", "-C", layout, "-xf", archive)
	c.bytes = layerBytes(b, layout, "converted")
	if err := errors.Join(os.Remove(archive), os.RemoveAll(layout)); err != nil {
		b.Fatal(err)
	}
	return c
}

// forget removes what was made, so that it has to be made again.
func (r *rival) forget(b *testing.B) {
	b.Helper()
	measured(b, r.command(b, "images", "rm", "--sync", rivalTarget))
}

// layerBytes returns the size of the only layer of an image in a layout.
func layerBytes(b *testing.B, dir, tag string) int64 {
	b.Helper()
	l, err := ocidir.Open(b.Context(), dir, oci.LayoutDir)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	d, raw, err := l.Resolve(b.Context(), tag, "")
	if err != nil {
		b.Fatal(err)
	}
	document, err := oci.DecodeDocument(raw, d.MediaType)
	if err != nil || document.Manifest == nil || len(document.Manifest.Layers) != 1 {
		b.Fatalf("%s: not an image of one layer: %v", dir, err)
	}
	return document.Manifest.Layers[0].Size
}

// measured runs a program to its end.
func measured(b *testing.B, cmd *exec.Cmd) cost {
	b.Helper()
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%q: %v: %s", cmd.Args, err, out)
	}
	return cost{cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), wall: time.Since(start)}
}

func benchOutput(b *testing.B, name string, args ...string) string {
	b.Helper()
	out, err := exec.CommandContext(b.Context(), name, args...).Output()
	if err != nil {
		b.Fatalf("%s %q: %v", name, args, err)
	}
	return string(out)
}

// processCPU returns the processor time that a process has had.
func processCPU(b *testing.B, pid int) time.Duration {
	b.Helper()
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:])) // proc(5): the third field is the first of these
	const tick = time.Second / 100                                          // USER_HZ
	var sum time.Duration
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(n) * tick
	}
	return sum
}

// medianOf returns the median, of two the lower.
func medianOf[T any, N cmp.Ordered](all []T, of func(T) N) N {
	values := make([]N, len(all))
	for i, v := range all {
		values[i] = of(v)
	}
	slices.Sort(values)
	return values[(len(values)-1)/2]
}
