package record

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"slices"
	"strings"
)

// ReadList reads a list of paths and globs, one a line; blank lines and those that
// start with # are skipped. In a glob, * and ? stop at slashes and ** does not. A list
// is held in memory; errors are as those of [Read].
func ReadList(r io.Reader, l Limits) ([]string, error) {
	l = l.withDefaults()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, l.MaxLineBytes)
	var list []string
	keptBytes := 0
	for n := 1; lines.Scan() && lines.Err() == nil; n++ { // after an error there is a part of a line
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		line, ok := cleanPath(line)
		if !ok {
			return nil, fmt.Errorf("read list: line %d is not a path: %w", n, ErrFormat)
		}
		for part := range strings.SplitSeq(line, "/") {
			if _, err := path.Match(part, ""); err != nil {
				return nil, fmt.Errorf("read list: line %d: %q is not a glob: %w", n, part, ErrFormat)
			}
		}
		if len(list) == l.MaxEntries {
			return nil, fmt.Errorf("read list: more than %d lines: %w", l.MaxEntries, ErrTooLarge)
		}
		if keptBytes += len(line); keptBytes > l.MaxListBytes {
			return nil, fmt.Errorf("read list: more than %d bytes: %w", l.MaxListBytes, ErrTooLarge)
		}
		list = append(list, line)
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return nil, fmt.Errorf("read list: a line has more than %d bytes: %w", l.MaxLineBytes, ErrTooLarge)
	case err != nil:
		return nil, fmt.Errorf("read list: %w", err)
	}
	return list, nil
}

// Expand returns entries for the files that a list matches, in its order, those of one
// glob by name, each once; and the lines that match none. layers are the names of each
// layer; what they hide of each other counts.
func Expand(ctx context.Context, list []string, layers []iter.Seq2[Name, error]) (matched *List, missed []string, err error) {
	x := newExpansion(list)
	defer x.found.close()
	for _, names := range layers {
		for name, err := range names {
			if err == nil {
				err = ctx.Err()
			}
			if err == nil && !name.IsDir && !strings.HasPrefix(path.Base(name.Path), whiteout) {
				err = x.take(name.Path)
			}
			if err != nil {
				return nil, nil, err
			}
		}
	}
	if matched, err = x.entries(ctx); err != nil {
		return nil, nil, err
	}
	for i, line := range list {
		if !x.hit[i] {
			missed = append(missed, line)
		}
	}
	return matched, missed, nil
}

// expansion holds names against a list.
type expansion struct {
	list   []string
	paths  []int32 // lines that are no globs, by path
	globs  []int32
	hit    []bool // by line
	found  sorter // names, behind the first line that each matches
	buffer []byte
}

func newExpansion(list []string) *expansion {
	x := &expansion{list: list, hit: make([]bool, len(list))}
	for i, line := range list {
		if strings.ContainsAny(line, `*?[\`) {
			x.globs = append(x.globs, int32(i))
		} else {
			x.paths = append(x.paths, int32(i))
		}
	}
	slices.SortStableFunc(x.paths, func(a, b int32) int { return strings.Compare(list[a], list[b]) })
	return x
}

// take notes the first line that a name matches.
func (x *expansion) take(name string) error {
	name, ok := cleanPath(name)
	if !ok {
		return nil
	}
	first := len(x.list)
	at, _ := slices.BinarySearchFunc(x.paths, name, func(i int32, name string) int { return strings.Compare(x.list[i], name) })
	for ; at < len(x.paths) && x.list[x.paths[at]] == name; at++ {
		x.hit[x.paths[at]] = true
		first = min(first, int(x.paths[at]))
	}
	for _, i := range x.globs {
		// Those behind the first are asked only for whether they match anything.
		if (int(i) < first || !x.hit[i]) && matches(x.list[i], name) {
			x.hit[i] = true
			first = min(first, int(i))
		}
	}
	if first == len(x.list) {
		return nil
	}
	x.buffer = append(binary.BigEndian.AppendUint32(x.buffer[:0], uint32(first)), name...)
	return x.found.add(x.buffer)
}

// entries returns what was found. A name that several layers have matches the same
// line in each.
func (x *expansion) entries(ctx context.Context) (*List, error) {
	matched := &List{}
	var last []byte
	for item, err := range x.found.sorted(ctx) {
		if err == nil && !bytes.Equal(item, last) {
			last = append(last[:0], item...)
			err = matched.Add(&Entry{Path: string(item[4:])})
		}
		if err != nil {
			matched.Close()
			return nil, err
		}
	}
	return matched, nil
}

// matches tells whether a path is what pattern means, part by part. Its time is bounded by the product of both
// lengths: of several ** only the last is ever tried again.
func matches(pattern, name string) bool {
	var star, from string // what is behind the last **, and where it was tried
	starred := false
	for name != "" {
		if pattern != "" {
			part, rest := cutPart(pattern)
			if part == "**" {
				star, from, starred = rest, name, true
				pattern = rest
				continue
			}
			base, below := cutPart(name)
			if ok, err := path.Match(part, base); ok && err == nil {
				pattern, name = rest, below
				continue
			}
		}
		if !starred {
			return false
		}
		_, from = cutPart(from)
		pattern, name = star, from
	}
	for pattern != "" {
		part, rest := cutPart(pattern)
		if part != "**" {
			return false
		}
		pattern = rest
	}
	return true
}

// cutPart parts the first name of a path from the rest.
func cutPart(p string) (part, rest string) {
	part, rest, _ = strings.Cut(p, "/")
	return part, rest
}
