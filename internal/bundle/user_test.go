package bundle

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"dray/internal/oci"
	"dray/internal/stream"
)

func TestUser(t *testing.T) {
	t.Parallel()
	few := []IDRange{{First: 0, Count: 1}, {First: 1000, Count: 2}}
	for name, test := range map[string]struct {
		image, user string
		o           Options
		want        specs.User
		home        string
		wantErr     string // part of the message
	}{
		"root by default":    {want: specs.User{AdditionalGids: []uint32{0, 10}}, home: "/root"},
		"name":               {image: "app", want: specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{10, 29, 1001}}, home: "/home/app"},
		"number in passwd":   {image: "1000", want: specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{10, 29, 1001}}, home: "/home/app"},
		"number":             {image: "4242", want: specs.User{UID: 4242, AdditionalGids: []uint32{0}}, home: "/"},
		"name and group":     {image: "app:wheel", want: specs.User{UID: 1000, GID: 10, AdditionalGids: []uint32{10}}, home: "/home/app"},
		"name and number":    {image: "app:7", want: specs.User{UID: 1000, GID: 7, AdditionalGids: []uint32{7}}, home: "/home/app"},
		"numbers":            {image: "5:6", want: specs.User{UID: 5, GID: 6, AdditionalGids: []uint32{6}}, home: "/"},
		"group alone":        {image: ":wheel", want: specs.User{GID: 10, AdditionalGids: []uint32{10}}, home: "/root"},
		"user's wins":        {image: "app", user: "0", want: specs.User{AdditionalGids: []uint32{0, 10}}, home: "/root"},
		"no home":            {image: "nohome", want: specs.User{UID: 1002, GID: 1002, AdditionalGids: []uint32{1002}}, home: "/"},
		"unknown name":       {image: "ghost", wantErr: `find user "ghost": no such name in the image's etc/passwd`},
		"unknown group":      {image: "app:ghost", wantErr: `no such group in the image's etc/group`},
		"entry without ID":   {image: "bad", wantErr: "no such name"},
		"comment":            {image: "# comment", wantErr: "no such name"},
		"too large":          {image: "4294967295", wantErr: "range"},
		"huge":               {image: "99999999999999999999", wantErr: "range"},
		"negative":           {image: "-1", wantErr: "range"},
		"unmapped user":      {image: "4242", o: Options{Rootless: true, UIDs: few, GIDs: few}, wantErr: "user ID 4242 does not exist in this user namespace"},
		"unmapped group":     {image: "1000:50", o: Options{Rootless: true, UIDs: few, GIDs: few}, wantErr: "group ID 50 does not exist in this user namespace"},
		"unmapped secondary": {image: "app", o: Options{Rootless: true, UIDs: few, GIDs: few}, want: specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{1001}}, home: "/home/app"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.o.User = test.user
			spec, err := Spec(newImage(oci.ImageConfig{Cmd: []string{"c"}, User: test.image}), newRootfs(t, users), test.o)
			if test.wantErr != "" {
				if !errors.Is(err, ErrUser) || !strings.Contains(err.Error(), test.wantErr) {
					t.Fatalf("error is %v, want ErrUser with %q", err, test.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(spec.Process.User, test.want); diff != "" {
				t.Error(diff)
			}
			if got := spec.Process.Env[len(spec.Process.Env)-1]; got != "HOME="+test.home {
				t.Errorf("got %s, want HOME=%s", got, test.home)
			}
		})
	}
}

// TestHostileUserFiles has what an image may put where users are looked up.
func TestHostileUserFiles(t *testing.T) {
	t.Parallel()
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, []byte("app:x:7:7:::\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	link := func(to string) func(t *testing.T, name string) {
		return func(t *testing.T, name string) {
			t.Helper()
			if err := os.Symlink(to, name); err != nil {
				t.Fatal(err)
			}
		}
	}
	write := func(content string) func(t *testing.T, name string) {
		return func(t *testing.T, name string) {
			t.Helper()
			if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, test := range map[string]struct {
		user    string
		put     func(t *testing.T, name string)
		wantUID uint32
		want    error
	}{
		"missing, by name":       {user: "app", put: func(*testing.T, string) {}, want: ErrUser},
		"missing, by number":     {user: "7", put: func(*testing.T, string) {}, wantUID: 7},
		"link to outside":        {user: "app", put: link(outside), want: ErrUser},
		"link climbing out":      {user: "app", put: link("../../../../../../../../../.." + outside), want: ErrUser},
		"link within":            {user: "app", put: link("/usr/passwd"), wantUID: 9},
		"link to itself":         {user: "app", put: link("passwd"), want: ErrUser},
		"link to a process file": {user: "app", put: link("/proc/self/environ"), want: ErrUser},
		"FIFO": {user: "app", want: errNotRegular, put: func(t *testing.T, name string) {
			t.Helper()
			if err := unix.Mkfifo(name, 0o644); err != nil {
				t.Fatal(err)
			}
		}},
		"directory": {user: "7", want: errNotRegular, put: func(t *testing.T, name string) {
			t.Helper()
			if err := os.Mkdir(name, 0o755); err != nil {
				t.Fatal(err)
			}
		}},
		"huge": {user: "7", want: stream.ErrTooLarge, put: func(t *testing.T, name string) {
			t.Helper()
			write("")(t, name)
			if err := os.Truncate(name, 1<<40); err != nil {
				t.Fatal(err)
			}
		}},
		"long line":     {user: "app", put: write("app:x:8:8:" + strings.Repeat("x", 1<<20) + "\n"), want: ErrUser},
		"zero bytes":    {user: "app", put: write("\x00\x00\napp:x:8:8::/h\x00:\n"), wantUID: 8},
		"ID beyond max": {user: "app", put: write("app:x:4294967295:8:::\n"), want: ErrUser},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rootfs := newRootfs(t, map[string]string{"etc/": "", "usr/passwd": "app:x:9:9:::\n"})
			test.put(t, filepath.Join(rootfs.Name(), passwdName))
			spec, err := Spec(newImage(oci.ImageConfig{Cmd: []string{"c"}, User: test.user}), rootfs, Options{})
			if !errors.Is(err, test.want) {
				t.Fatalf("error is %v, want %v", err, test.want)
			}
			if err == nil && spec.Process.User.UID != test.wantUID {
				t.Errorf("got user %d, want %d", spec.Process.User.UID, test.wantUID)
			}
		})
	}
}

func TestTooManyGroups(t *testing.T) {
	t.Parallel()
	var group strings.Builder
	for i := range maxGroupCount + 10 {
		_, _ = io.WriteString(&group, "g:x:"+strconv.Itoa(i)+":app\n")
	}
	rootfs := newRootfs(t, map[string]string{"etc/passwd": users["etc/passwd"], "etc/group": group.String()})
	_, err := Spec(newImage(oci.ImageConfig{Cmd: []string{"c"}, User: "app"}), rootfs, Options{})
	if !errors.Is(err, ErrUser) {
		t.Errorf("error is %v, want ErrUser", err)
	}
}

func TestCallersIDs(t *testing.T) {
	t.Parallel()
	o := Options{Rootless: true}
	if err := o.fillIDs(); err != nil {
		t.Fatal(err)
	}
	if !hasID(o.UIDs, uint32(os.Getuid())) || !hasID(o.GIDs, uint32(os.Getgid())) {
		t.Errorf("own IDs are not among %v and %v", o.UIDs, o.GIDs)
	}
}

func FuzzUser(f *testing.F) {
	f.Add("app", users[passwdName], users[groupName])
	f.Add("1:2", "a:b:c\n:::::\n", "x:y:1:a,b,\n")
	f.Add(":", "", "")
	f.Fuzz(func(t *testing.T, who, passwd, group string) {
		rootfs := newRootfs(t, map[string]string{passwdName: passwd, groupName: group})
		found, err := lookUpUser(rootfs, who, &Options{})
		if err != nil {
			return
		}
		if found.user.UID > maxID || found.user.GID > maxID || len(found.user.AdditionalGids) == 0 || found.home == "" || strings.ContainsRune(found.home, 0) {
			t.Errorf("user %q: got %+v", who, found)
		}
	})
}
