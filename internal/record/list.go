package record

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// ReadList reads a list of paths and globs, one a line; blank lines and those that
// start with # are skipped. In a glob, * and ? stop at slashes and ** does not.
func ReadList(r io.Reader, l Limits) ([]string, error) {
	l = l.withDefaults()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, l.MaxLineBytes)
	var list []string
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

// Expand returns the names that a list matches, in its order, those of one glob by
// name, each once; and the lines that match none. names are relative to the root.
func Expand(list, names []string) (matched, missed []string) {
	names = slices.Clone(names)
	slices.Sort(names)
	names = slices.Compact(names)
	seen := map[string]bool{}
	for _, line := range list {
		before, found := len(matched), false
		if !strings.ContainsAny(line, `*?[\`) {
			if _, found = slices.BinarySearch(names, line); found && !seen[line] {
				matched = append(matched, line)
			}
		} else {
			pattern := strings.Split(line, "/")
			for _, name := range names {
				if !matches(pattern, strings.Split(name, "/")) {
					continue
				}
				if found = true; !seen[name] {
					matched = append(matched, name)
				}
			}
		}
		for _, name := range matched[before:] {
			seen[name] = true
		}
		if !found {
			missed = append(missed, line)
		}
	}
	return matched, missed
}

// matches tells whether a path is what pattern means, part by part. Its time is bounded by the product of both
// lengths: of several ** only the last is ever tried again.
func matches(pattern, name []string) bool {
	i, j, star, from := 0, 0, -1, 0
	for j < len(name) {
		switch {
		case i < len(pattern) && pattern[i] == "**":
			star, from = i, j
			i++
			continue
		case i < len(pattern):
			if ok, err := path.Match(pattern[i], name[j]); ok && err == nil {
				i, j = i+1, j+1
				continue
			}
		}
		if star < 0 {
			return false
		}
		from++
		i, j = star+1, from
	}
	for i < len(pattern) && pattern[i] == "**" {
		i++
	}
	return i == len(pattern)
}
