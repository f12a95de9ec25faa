package mount

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const sampleTable = `21 1 254:0 / / rw,relatime - ext4 /dev/root rw
22 21 0:20 / /with\040space\011tab\012line\134backslash rw shared:1 master:2 - tmpfs tmp\040fs rw,size=4k
67 21 0:39 /sub /mnt rw,relatime shared:7 - overlay dray:01234567-abc rw,lowerdir+=/a - b,upperdir=/c
68 21 0:40 / /x rw - overlay  rw
69 21 0:41 / /y rw - tmpfs dray:not-an-overlay rw
`

func TestParseTable(t *testing.T) {
	t.Parallel()
	got, err := parseTable(strings.NewReader(sampleTable))
	if err != nil {
		t.Fatal(err)
	}
	want := table{
		{id: 21, parent: 1, root: "/", point: "/", fsType: "ext4", source: "/dev/root"},
		{id: 22, parent: 21, root: "/", point: "/with space\ttab\nline\\backslash", fsType: "tmpfs", source: "tmp fs"},
		{id: 67, parent: 21, root: "/sub", point: "/mnt", fsType: "overlay", source: "dray:01234567-abc"},
		{id: 68, parent: 21, root: "/", point: "/x", fsType: "overlay"},
		{id: 69, parent: 21, root: "/", point: "/y", fsType: "tmpfs", source: "dray:not-an-overlay"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(entry{})); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	var ids []string
	for _, e := range got {
		ids = append(ids, e.recordID())
	}
	if diff := cmp.Diff([]string{"", "", "01234567-abc", "", ""}, ids); diff != "" {
		t.Errorf("record IDs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"/with space\ttab\nline\\backslash", "/mnt", "/x", "/y"}, got.below(21)); diff != "" {
		t.Errorf("mounts on / (-want +got):\n%s", diff)
	}
}

func TestParseTableRefuses(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"21", "21 1 254:0 / / rw - ext4", "x 1 254:0 / / rw - ext4 a rw", "21 -1 254:0 / / rw - ext4 a rw", "21 1 254:0 / / rw ext4 a rw"} {
		if got, err := parseTable(strings.NewReader(line)); err == nil {
			t.Errorf("%q: parsed as %+v", line, got)
		}
	}
}

func FuzzParseTable(f *testing.F) {
	f.Add(sampleTable)
	f.Add(`1 2 0:0 \ \1 \999 - a \`)
	f.Fuzz(func(_ *testing.T, text string) {
		got, err := parseTable(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, e := range got {
			_ = e.recordID()
		}
	})
}
