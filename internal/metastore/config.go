package metastore

import (
	"bytes"
	"encoding/json"

	"dray/internal/oci"
)

// RawConfig returns the bytes of the configuration as a registry has it: image-rs has
// decoded and encoded them again. If none of the usual ways of writing JSON has the
// digest ID, what image-rs wrote is returned, which is not verified then.
func (i *Image) RawConfig() (raw []byte, verified bool) {
	var compact bytes.Buffer
	_ = json.Compact(&compact, i.Config) // is JSON: it was decoded
	candidates := [][]byte{i.Config, compact.Bytes()}
	for _, indent := range []string{"  ", "   ", "    ", "\t"} {
		var indented bytes.Buffer
		_ = json.Indent(&indented, compact.Bytes(), "", indent)
		candidates = append(candidates, indented.Bytes())
	}
	for _, candidate := range candidates {
		for _, end := range []string{"", "\n"} {
			sum := i.ID.Hash()
			_, _ = sum.Write(candidate) // hash.Hash never fails
			_, _ = sum.Write([]byte(end))
			if oci.DigestOf(i.ID.Algorithm(), sum) == i.ID {
				return append(candidate[:len(candidate):len(candidate)], end...), true
			}
		}
	}
	return compact.Bytes(), false
}
