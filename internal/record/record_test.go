package record

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"dray/internal/layer"
	"dray/internal/oci"
)

// document003 is the record of document 003, but for what it omits.
const document003 = `{"path":"bin/bash","manifestDigest":"sha256:2322be6aa1e61c36cfa34a0d355b7f088022e34c6f17016bafae6041c67a0a1b","layerIndex":0}
{"path":"bin/bash","manifestDigest":"sha256:2322be6aa1e61c36cfa34a0d355b7f088022e34c6f17016bafae6041c67a0a1b","layerIndex":0}
{"path":"lib/x86_64-linux-gnu/ld-2.28.so","manifestDigest":"sha256:2322be6aa1e61c36cfa34a0d355b7f088022e34c6f17016bafae6041c67a0a1b","layerIndex":0}
`

func TestReadsAndWritesDocument003(t *testing.T) {
	t.Parallel()
	r, err := Read(strings.NewReader(document003), Limits{})
	if err != nil || r.Entries.Len() != 2 || r.Lines != 3 {
		t.Fatalf("%+v, %v", r, err)
	}
	var out bytes.Buffer
	if n, err := r.Entries.WriteTo(&out); err != nil || n != r.Entries.Size() {
		t.Fatal(n, err)
	}
	lines := strings.SplitAfter(document003, "\n")
	if diff := cmp.Diff(out.String(), lines[0]+lines[2]); diff != "" {
		t.Error(diff)
	}
}

// lines is a record of count entries, each of them twice.
func lines(count int) io.Reader {
	pr, pw := io.Pipe()
	go func() {
		out := bufio.NewWriter(pw)
		for i := range 2 * count {
			_, err := fmt.Fprintf(out, `{"path":"usr/lib/%07d.so","manifestDigest":"%s","layerIndex":%d}`+"\n", i%count, oci.DigestBytes(nil), i%count%7)
			if err != nil {
				break
			}
		}
		_ = pw.CloseWithError(out.Flush())
	}()
	return pr
}

func TestSameEntries(t *testing.T) {
	t.Parallel()
	digests := []string{string(oci.DigestBytes(nil)), string(oci.DigestBytes([]byte("a")))}
	text := `{"path":"a"}
{"path":"/a"}
{"path":"a","layerIndex":0}
{"path":"a","layerIndex":1}
{"path":"a","manifestDigest":"` + digests[0] + `"}
{"path":"a","manifestDigest":"` + digests[1] + `"}
{"path":"a","manifestDigest":"` + digests[1] + `","layerIndex":1}
{"path":"a","manifestDigest":"` + digests[1] + `","layerIndex":1,"count":7}
{"path":"a1"}
`
	if rec, err := Read(strings.NewReader(text), Limits{}); err != nil || rec.Entries.Len() != 7 || rec.Lines != 9 {
		t.Errorf("got %+v, %v", rec, err)
	}
}

// A source that breaks off in the middle of a line is no malformed record.
func TestBrokenSource(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	src := func(text string) io.Reader { return io.MultiReader(strings.NewReader(text), iotest.ErrReader(broken)) }
	if _, err := Read(src(`{"path":"a"}`+"\n"+`{"pa`), Limits{}); !errors.Is(err, broken) {
		t.Errorf("record: got %v", err)
	}
	if _, err := ReadList(src("a\n[b"), Limits{}); !errors.Is(err, broken) {
		t.Errorf("list: got %v", err)
	}
}

func BenchmarkRead(b *testing.B) {
	for b.Loop() {
		rec, err := Read(lines(100_000), Limits{})
		if err != nil || rec.Entries.Len() != 100_000 {
			b.Fatal(rec, err)
		}
		rec.Entries.Close()
	}
	b.ReportAllocs()
}

func TestReadIsStrictAboutFormOnly(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, text string
		entries    int
		want       error
	}{
		{"nothing", "", 0, nil},
		{"climbing", `{"path":"a/../../etc/shadow"}` + "\n" + `{"path":"/b"}`, 1, nil},
		{"root", `{"path":"/"}`, 0, nil},
		{"negative layer", `{"path":"a","layerIndex":-1}`, 0, nil},
		{"overflowing range", `{"path":"a","ranges":[{"offset":9223372036854775807,"size":1}]}`, 0, nil},
		{"unknown fields", `{"path":"a","x":[1]}`, 1, nil},
		{"no JSON", "a\n", 0, ErrFormat},
		{"digest", `{"path":"a","manifestDigest":"md5:1"}`, 0, ErrFormat},
		{"long line", `{"path":"` + strings.Repeat("a", 200), 0, ErrTooLarge},
		{"many bytes", `{"path":"` + strings.Repeat("a", 60) + `"}` + "\n" + `{"path":"` + strings.Repeat("b", 60) + `"}`, 0, ErrTooLarge},
		{"many", "{\"path\":\"a\"}\n{\"path\":\"b\"}\n{\"path\":\"c\"}\n", 0, ErrTooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r, err := Read(strings.NewReader(test.text), Limits{MaxEntries: 2, MaxLineBytes: 100, MaxBytes: 120})
			if !errors.Is(err, test.want) || err == nil && r.Entries.Len() != test.entries {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

func all(t *testing.T, p Paths) []string {
	t.Helper()
	got, err := p.Strings()
	if err != nil || len(got) != p.Len() {
		t.Fatalf("%d of %d paths, %v", len(got), p.Len(), err)
	}
	return got
}

// listOf returns the entries as a list, listed what is in one.
func listOf(t *testing.T, entries ...Entry) *List {
	t.Helper()
	l, err := ListOf(entries...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

func entriesOf(t *testing.T, l *List) []Entry {
	t.Helper()
	var got []Entry
	for e, err := range l.All() {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
	}
	return got
}

func names(all ...string) iter.Seq2[Name, error] {
	return func(yield func(Name, error) bool) {
		for _, n := range all {
			dir := strings.HasSuffix(n, "/")
			if !yield(Name{Path: n, IsDir: dir, Size: 10}, nil) {
				return
			}
		}
	}
}

func TestApplyTakesTheVisibleCopy(t *testing.T) {
	t.Parallel()
	layers := []iter.Seq2[Name, error]{
		names("a", "d/", "d/x", "gone", "o/x", "f/below", "dir/", "dir/kept"),
		names("./a", ".wh.gone", "o/.wh..wh..opq", "o/y", "f", "dir/"),
		names("top"),
	}
	entries := &List{}
	for _, p := range []string{"top", "a", "gone", "d/x", "o/x", "o/y", "f/below", "dir/kept", "never", "a"} {
		if err := entries.Add(&Entry{Path: p}); err != nil {
			t.Fatal(err)
		}
	}
	plan, err := Apply(t.Context(), entries, layers)
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	var got [][]string
	for _, l := range plan.Layers {
		got = append(got, all(t, l.Paths))
	}
	if diff := cmp.Diff(got, [][]string{{"d/x", "dir/kept"}, {"a", "o/y"}, {"top"}}); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(all(t, plan.Missing), []string{"gone", "o/x", "f/below", "never"}); diff != "" {
		t.Error(diff)
	}
	if plan.Matched != 5 || plan.Share() <= 0 || plan.Share() >= 1 {
		t.Errorf("matched %d, share %v", plan.Matched, plan.Share())
	}
	failing := func(yield func(Name, error) bool) { yield(Name{}, io.ErrClosedPipe) }
	if _, err := Apply(t.Context(), entries, []iter.Seq2[Name, error]{failing}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
}

// A file that has another name is found by its content, if the container sees it there.
func TestApplyFollowsContent(t *testing.T) {
	t.Parallel()
	x, y := oci.DigestBytes([]byte("x")), oci.DigestBytes([]byte("y"))
	file := func(path string, d oci.Digest) Name { return Name{Path: path, Size: 1, Digest: d} }
	layers := []iter.Seq2[Name, error]{
		listed(file("hidden/x", x), file("usr/x", x), file("replaced/y", y)),
		listed(Name{Path: ".wh.hidden"}, file("replaced/y", oci.DigestBytes([]byte("z")))),
		listed(file("top/x", x)),
	}
	entries := listOf(t,
		Entry{Path: "bin/x", ContentDigest: x, Size: 1, Count: 3},
		Entry{Path: "bin/y", ContentDigest: y, Size: 1},
		Entry{Path: "top/x", ContentDigest: y, Size: 1},
		Entry{Path: "usr/x"},
	)
	plan, err := Apply(t.Context(), entries, layers)
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	type layerPlan struct {
		Paths        []string
		Bytes, Total int64
		Files        int
	}
	var got []layerPlan
	for _, l := range plan.Layers {
		got = append(got, layerPlan{all(t, l.Paths), l.Bytes, l.TotalBytes, l.TotalFiles})
	}
	want := []layerPlan{{[]string{"usr/x"}, 1, 3, 3}, {nil, 0, 1, 1}, {[]string{"top/x"}, 1, 1, 1}}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Error(diff)
	}
	var moved []Move
	for m, err := range plan.Moved() {
		if err != nil {
			t.Fatal(err)
		}
		moved = append(moved, m)
	}
	if diff := cmp.Diff(moved, []Move{{"bin/x", "usr/x"}}); diff != "" || plan.Matched != 3 || plan.MovedCount() != 1 {
		t.Error(plan.Matched, diff)
	}
	if diff := cmp.Diff(all(t, plan.Missing), []string{"bin/y"}); diff != "" {
		t.Error(diff)
	}
	rewritten, err := plan.Rewrite(entries, x)
	if err != nil {
		t.Fatal(err)
	}
	defer rewritten.Close()
	lowest, highest := 0, 2
	if diff := cmp.Diff(entriesOf(t, rewritten), []Entry{
		{Path: "usr/x", ManifestDigest: x, LayerIndex: &lowest, ContentDigest: x, Size: 1, Count: 3},
		{Path: "top/x", ManifestDigest: x, LayerIndex: &highest, ContentDigest: y, Size: 1},
	}); diff != "" {
		t.Error(diff)
	}
	if sizes, err := ContentSizes(entries); err != nil || !sizes(1) || sizes(2) {
		t.Error("sizes that are not those of the contents", err)
	}
}

func listed(names ...Name) iter.Seq2[Name, error] {
	return func(yield func(Name, error) bool) {
		for _, n := range names {
			if !yield(n, nil) {
				return
			}
		}
	}
}

func TestMerge(t *testing.T) {
	t.Parallel()
	a := listOf(t, []Entry{{Path: "a", Count: 1, Ranges: []Range{{0, 10}}}, {Path: "b"}, {Path: "c"}}...)
	b := listOf(t, Entry{Path: "c"}, Entry{Path: "a", Count: 2, Ranges: []Range{{5, 10}, {100, 1}}})
	merged, err := Merge(t.Context(), []Weighted{{Entries: a}, {Entries: b, Weight: 3}})
	if err != nil {
		t.Fatal(err)
	}
	defer merged.Close()
	got := entriesOf(t, merged)
	want := []Entry{{Path: "c"}, {Path: "a", Count: 3, Ranges: []Range{{0, 15}, {100, 1}}}, {Path: "b"}}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Error(diff)
	}
}

// expand holds a list against the names of one layer, which are there twice.
func expand(t *testing.T, list []string, names ...string) (matched, missed []string) {
	t.Helper()
	held := &Names{}
	defer held.Close()
	for _, name := range names {
		if err := held.Add(&Name{Path: name}); err != nil {
			t.Fatal(err)
		}
	}
	if err := held.Flush(); err != nil {
		t.Fatal(err)
	}
	entries, missed, err := Expand(t.Context(), list, []iter.Seq2[Name, error]{held.All(), held.All()})
	if err != nil {
		t.Fatal(err)
	}
	defer entries.Close()
	for e, err := range entries.All() {
		if err != nil {
			t.Fatal(err)
		}
		matched = append(matched, e.Path)
	}
	return matched, missed
}

// Names come back as they were, from memory and from a file.
func TestNames(t *testing.T) {
	t.Parallel()
	for _, count := range []int{0, 3, 3000} {
		want := make([]Name, count)
		names := &Names{}
		for i := range want {
			want[i] = Name{Path: fmt.Sprintf("a\n/%0*d", i%60, i), IsDir: i%3 == 1, Size: int64(i) << 30}
			if i%2 == 0 {
				want[i].Digest = oci.DigestBytes([]byte{byte(i)})
			}
			if err := names.Add(&want[i]); err != nil {
				t.Fatal(err)
			}
		}
		if err := names.Flush(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			got := make([]Name, 0, count)
			for name, err := range names.All() {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, name)
			}
			if diff := cmp.Diff(got, want); diff != "" {
				t.Errorf("%d names: %s", count, diff)
			}
		}
		if held := names.text.memory.Cap(); held > 2*namesMemoryBytes {
			t.Errorf("%d names take %d bytes of memory", count, held)
		}
		names.Close()
	}
}

func TestListsAndGlobs(t *testing.T) {
	t.Parallel()
	list, err := ReadList(strings.NewReader("# first\n\n/usr/lib/**/*.so\nbin/?sh\nnone\nusr/**\n**/x/**/y\n"), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	matched, missed := expand(t, list, "usr/lib/b.so", "usr/lib/a/c.so", "usr/x", "bin/ash", "bin/bash", "x/y", "./usr/x", "1/x/2/3/y", "usr/.wh.gone")
	want := []string{"usr/lib/a/c.so", "usr/lib/b.so", "bin/ash", "usr/x", "1/x/2/3/y", "x/y"}
	if diff := cmp.Diff(matched, want); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(missed, []string{"none"}); diff != "" {
		t.Error(diff)
	}
	if _, err := ReadList(strings.NewReader(strings.Repeat("a", 20)), Limits{MaxLineBytes: 10}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("long line: got %v", err)
	}
	if _, err := ReadList(strings.NewReader(strings.Repeat("a\n", 20)), Limits{MaxListBytes: 10}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("many bytes: got %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	one := func(yield func(Name, error) bool) { yield(Name{Path: "a"}, nil) }
	if _, _, err := Expand(ended, []string{"*"}, []iter.Seq2[Name, error]{one}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: got %v", err)
	}
	for _, bad := range []string{"../x", "a/[", "/"} {
		if _, err := ReadList(strings.NewReader(bad), Limits{}); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: got %v", bad, err)
		}
	}
}

func TestRecordImage(t *testing.T) {
	t.Parallel()
	rec, err := Read(strings.NewReader(document003), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	subject := &oci.Descriptor{MediaType: oci.MediaTypeManifest, Digest: oci.DigestBytes(nil), Size: 7}
	for _, s := range []*oci.Descriptor{nil, subject} {
		image, err := NewImage(rec.Entries, oci.Platform{OS: "linux", Architecture: "amd64"}, s)
		if err != nil {
			t.Fatal(err)
		}
		defer image.Close()
		packed, err := io.ReadAll(io.NewSectionReader(image, 0, image.Layer.Size))
		if err != nil {
			t.Fatal(err)
		}
		doc, err := oci.DecodeDocument(image.Manifest, "")
		if err != nil {
			t.Fatal(err)
		}
		desc, err := LayerOf(doc.Manifest)
		if err != nil || desc.Digest != oci.DigestBytes(packed) || desc.MediaType != oci.MediaTypeLayerGz {
			t.Errorf("layer %+v, %v", desc, err)
		}
		if diff := cmp.Diff(doc.Manifest.Subject, s); diff != "" {
			t.Error(diff)
		}
		z, err := layer.Decompress(bytes.NewReader(packed), layer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := ReadTar(z, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(entriesOf(t, got.Entries), entriesOf(t, rec.Entries)); diff != "" {
			t.Error(diff)
		}
	}
	// The sizes that document 003 shows; the newline is that of Go's encoder.
	image, err := NewImage(nil, oci.Platform{OS: "linux", Architecture: "amd64"}, nil)
	if err != nil || len(image.Config) != 164 || !strings.HasSuffix(string(image.Manifest), "}\n") {
		t.Errorf("config %s, manifest %s, %v", image.Config, image.Manifest, err)
	}
	if _, err := ReadTar(bytes.NewReader(make([]byte, 1024)), Limits{}); !errors.Is(err, ErrFormat) {
		t.Errorf("empty tar: got %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(document003))
	f.Add([]byte(`{"path":"a","ranges":[{"offset":1,"size":2}],"count":3,"workload":"w"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := Read(bytes.NewReader(text), Limits{})
		if err != nil {
			return
		}
		var out bytes.Buffer
		defer r.Entries.Close()
		if _, err := r.Entries.WriteTo(&out); err != nil {
			t.Fatal(err)
		}
		again, err := Read(&out, Limits{MaxLineBytes: 1 << 30})
		if err != nil {
			t.Fatal(err)
		}
		defer again.Entries.Close()
		if again.Entries.Len() != r.Entries.Len() || again.Skipped != 0 {
			t.Errorf("%d entries became %d", r.Entries.Len(), again.Entries.Len())
		}
	})
}

func FuzzReadList(f *testing.F) {
	f.Add("# first\n/usr/lib/**/*.so\nbin/?sh\n", "usr/lib/a/b.so\nbin/ash")
	f.Add("a/[a-z]\\*/**\n**", "a/b*/c")
	f.Fuzz(func(t *testing.T, text, names string) {
		list, err := ReadList(strings.NewReader(text), Limits{})
		if err != nil {
			return
		}
		all := strings.Split(names, "\n")
		matched, missed := expand(t, list, all...)
		seen := map[string]bool{}
		for _, name := range matched {
			is := func(other string) bool {
				clean, ok := cleanPath(other)
				return ok && clean == name
			}
			if seen[name] || !slices.ContainsFunc(all, is) {
				t.Errorf("%q is there twice or is none of the names", name)
			}
			seen[name] = true
		}
		if len(missed) > len(list) {
			t.Errorf("%d of %d lines match nothing", len(missed), len(list))
		}
	})
}

func FuzzReadTar(f *testing.F) {
	var text bytes.Buffer
	w := tar.NewWriter(&text)
	if err := w.WriteHeader(&tar.Header{Name: FileName, Typeflag: tar.TypeReg, Size: int64(len(document003))}); err != nil {
		f.Fatal(err)
	}
	if _, err := io.WriteString(w, document003); err != nil {
		f.Fatal(err)
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(text.Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		rec, err := ReadTar(bytes.NewReader(raw), Limits{MaxEntries: 100})
		if err != nil {
			return
		}
		defer rec.Entries.Close()
		if rec.Entries.Len() > 100 {
			t.Errorf("%d entries", rec.Entries.Len())
		}
	})
}
