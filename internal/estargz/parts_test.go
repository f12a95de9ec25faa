package estargz

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"dray/internal/oci"
)

const someSum = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestReadParts(t *testing.T) {
	t.Parallel()
	reg := func(name string, size, offset int64, more string) string {
		return fmt.Sprintf(`{"name":%q,"type":"reg","size":%d,"offset":%d,"digest":%q%s}`, name, size, offset, someSum, more)
	}
	chunk := func(name string, at, size, offset int64, more string) string {
		return fmt.Sprintf(`{"name":%q,"type":"chunk","chunkOffset":%d,"chunkSize":%d,"offset":%d%s}`, name, at, size, offset, more)
	}
	for name, one := range map[string]struct {
		entries []string
		want    string // NAME SIZE OFFSET-END of each
		bad     bool
	}{
		"one chunk ends nobody knows where": {entries: []string{reg("a", 50, 10, ""), reg("b", 5, 40, "")}},
		"one chunk with its end":            {entries: []string{reg("a", 50, 10, `,"endOffset":30`), reg("b", 5, 30, "")}, want: "a 50 10-30"},
		"all chunks but the last":           {entries: []string{reg("a/", 50, 10, `,"chunkSize":20`), chunk("a", 20, 20, 25, ""), chunk("a", 40, 0, 45, "")}, want: "a 40 10-45"},
		"all chunks, with their end":        {entries: []string{reg("a", 50, 10, `,"chunkSize":20,"endOffset":60`), chunk("a", 20, 30, 25, "")}, want: "a 50 10-60"},
		"a directory between":               {entries: []string{reg("a", 50, 10, `,"endOffset":30`), `{"name":"d/","type":"dir"}`, reg("b", 9, 31, `,"endOffset":40`)}, want: "a 50 10-30,b 9 31-40"},
		"chunks that share a member":        {entries: []string{reg("a", 50, 10, `,"chunkSize":20`), chunk("a", 20, 30, 10, `,"innerOffset":20`)}},
		"a member that begins before":       {entries: []string{reg("a", 50, 10, `,"innerOffset":3,"endOffset":30`)}},
		"no digest":                         {entries: []string{`{"name":"a","type":"reg","size":50,"offset":10,"endOffset":30}`}},
		"further compressed than it pays":   {entries: []string{reg("a", 5000, 10, `,"endOffset":30`)}},
		"less than asked for":               {entries: []string{reg("a", 5, 10, `,"endOffset":14`)}},
		"not in order":                      {entries: []string{reg("a", 50, 30, ""), reg("b", 5, 10, "")}, bad: true},
		"overlapping":                       {entries: []string{reg("a", 50, 10, `,"endOffset":30`), reg("b", 5, 29, "")}, bad: true},
		"an end before the beginning":       {entries: []string{reg("a", 50, 10, `,"endOffset":10`)}, bad: true},
		"an end behind the blob":            {entries: []string{reg("a", 50, 10, `,"endOffset":1001`)}, bad: true},
		"behind the blob":                   {entries: []string{reg("a", 50, 1000, "")}, bad: true},
		"negative":                          {entries: []string{reg("a", 50, -1, "")}, bad: true},
		"negative size":                     {entries: []string{reg("a", -50, 1, "")}, bad: true},
		"a hole":                            {entries: []string{reg("a", 50, 10, `,"chunkSize":20`), chunk("a", 21, 29, 25, "")}, bad: true},
		"too little":                        {entries: []string{reg("a", 50, 10, `,"chunkSize":20`)}, bad: true},
		"too much":                          {entries: []string{reg("a", 50, 10, `,"chunkSize":60`)}, bad: true},
		"chunk of nothing":                  {entries: []string{chunk("a", 0, 5, 10, "")}, bad: true},
		"a name that climbs":                {entries: []string{reg("../a", 50, 10, "")}, bad: true},
		"no such digest":                    {entries: []string{`{"name":"a","type":"reg","size":50,"offset":10,"digest":"md5:1"}`}, bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := `{"version":1,"entries":[` + strings.Join(one.entries, ",") + `]}`
			parts, digest, err := ReadParts(strings.NewReader(text), Footer{Format: ZstdChunked, PayloadSize: 1000}, 5, Limits{})
			if one.bad {
				if !errors.Is(err, ErrFormat) {
					t.Errorf("got %v, want ErrFormat", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for i := range parts {
				got = append(got, fmt.Sprintf("%s %d %d-%d", parts[i].Name, parts[i].Size, parts[i].Offset, parts[i].EndOffset))
			}
			if strings.Join(got, ",") != one.want || digest != oci.DigestBytes([]byte(text)) {
				t.Errorf("got %q of %s, want %q", got, digest, one.want)
			}
		})
	}
}

// Whatever a TOC says, parts lie in the blob, one behind the other.
func FuzzReadParts(f *testing.F) {
	f.Add([]byte(`{"version":1,"entries":[{"name":"a","type":"reg","size":50,"offset":10,"endOffset":60,"chunkSize":20,"digest":"` + someSum + `"},` +
		`{"name":"a","type":"chunk","offset":25,"chunkOffset":20,"chunkSize":30},{"name":"b","type":"reg","size":5,"offset":60}]}`))
	f.Add([]byte(`{"version":1,"entries":[]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		const payload = 1000
		parts, _, err := ReadParts(bytes.NewReader(text), Footer{Format: ZstdChunked, PayloadSize: payload}, 1, Limits{})
		if err != nil && len(parts) > 0 {
			t.Errorf("%d parts and an error: %v", len(parts), err)
		}
		at := int64(0)
		for i := range parts {
			p := &parts[i]
			if p.Offset < at || p.EndOffset <= p.Offset || p.EndOffset > payload || p.Size <= 0 || p.Size > p.FileSize {
				t.Errorf("part %+v behind %d", p, at)
			}
			at = p.EndOffset
		}
	})
}
