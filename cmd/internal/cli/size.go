package cli

import (
	"fmt"
	"strconv"
	"strings"
)

// ParseSize reads a number of bytes, with kB, MB, GB (powers of 1000) or KiB,
// MiB, GiB (powers of 1024) behind it.
func ParseSize(s string) (int64, error) {
	units := []struct {
		name  string
		bytes float64
	}{
		{"KiB", 1 << 10},
		{"MiB", 1 << 20},
		{"GiB", 1 << 30},
		{"TiB", 1 << 40},
		{"kB", 1e3},
		{"KB", 1e3},
		{"MB", 1e6},
		{"GB", 1e9},
		{"TB", 1e12},
		{"B", 1},
	}
	number, unit := strings.TrimSpace(s), 1.0
	for _, u := range units {
		if rest, ok := strings.CutSuffix(number, u.name); ok {
			number, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || n < 0 || n*unit >= 1<<62 || n != n {
		return 0, fmt.Errorf("parse size %q: want a number with kB, MB, GB, KiB, MiB or GiB", s)
	}
	return int64(n * unit), nil
}

// Size formats a number of bytes for people: "263.6 MB".
func Size(n int64) string {
	const unit = 1000
	if n < unit {
		return strconv.FormatInt(n, 10) + " B"
	}
	value, prefix := float64(n)/unit, 0
	for value >= unit && prefix < 4 {
		value /= unit
		prefix++
	}
	return fmt.Sprintf("%.1f %cB", value, "kMGTP"[prefix])
}
