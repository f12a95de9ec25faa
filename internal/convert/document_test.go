package convert

import (
	"bytes"
	"encoding/json"
	"testing"

	"dray/internal/oci"
)

func TestEdit(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, raw string
		fields    map[string]any
		want      string
	}{
		{"sets and keeps", `{"b":{"x": 1e3},"a":"<&>","layers":[1]}`, map[string]any{"layers": []int{2}}, `{"a":"<&>","b":{"x":1e3},"layers":[2]}`},
		{"removes", `{"a":1,"b":2}`, map[string]any{"a": nil}, `{"b":2}`},
		{"large numbers", `{"n":12345678901234567890}`, nil, `{"n":12345678901234567890}`},
		{"another spelling", `{"Layers":[1],"LAYERS":[2]}`, map[string]any{"layers": []int{3}}, `{"layers":[3]}`},
		{"the last of two", `{"a":1,"a":2}`, nil, `{"a":2}`},
	} {
		got, err := edit([]byte(test.raw), test.fields)
		if err != nil || string(got) != test.want {
			t.Errorf("%s: %s, %v, want %s", test.name, got, err, test.want)
		}
	}
}

// What is edited stays a document, of which editing nothing changes nothing.
func FuzzEdit(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}`))
	f.Add([]byte(`{"rootfs":{"type":"layers","diff_ids":[]},"Rootfs":null,"\ud800":1}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		once, err := edit(raw, map[string]any{"layers": []oci.Descriptor{}})
		if err != nil {
			return
		}
		if !json.Valid(once) {
			t.Fatalf("no JSON: %q", once)
		}
		if again, err := edit(once, nil); err != nil || !bytes.Equal(once, again) {
			t.Fatalf("edited again: %q, %v, was %q", again, err, once)
		}
	})
}
