package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// document is a configuration file in TOML, whose errors say line and key.
type document struct {
	path  string
	text  string
	top   map[string]toml.Primitive
	lines bool // the text is what the file has, so its lines mean something
}

// maxDepth is how deep tables may nest: twice what any file needs. The TOML
// decoder's time and memory grow with the depth's cube.
const maxDepth = 16

var (
	errDeep  = errors.New("tables nest too deeply")
	deepKeys = regexp.MustCompile(fmt.Sprintf(`(?:(?:"[^"\n]*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*\.[ \t]*){%d}`, maxDepth))
	deepBody = regexp.MustCompile(fmt.Sprintf(`(?:\{[^{}]*){%d}`, maxDepth))
)

// newDocument parses text as TOML or, if it starts with a brace, as JSON.
func newDocument(path, text string) (*document, error) {
	d := &document{path: path, text: text, lines: true}
	if strings.HasPrefix(strings.TrimLeft(text, " \t\r\n"), "{") {
		var err error
		if d.text, err = tomlOf(text); err != nil {
			return nil, &ConfigError{Path: path, Err: err}
		}
		d.lines = false
	}
	if d.lines && (deepKeys.MatchString(text) || deepBody.MatchString(text)) {
		return nil, &ConfigError{Path: path, Err: errDeep}
	}
	if _, err := toml.Decode(d.text, &d.top); err != nil {
		return nil, d.syntax(err)
	}
	return d, nil
}

// sections returns the names of all keys at the top, sorted.
func (d *document) sections() []string { return slices.Sorted(maps.Keys(d.top)) }

// decode fills v. Keys that v has no place for are errors, by why if that
// returns one. Names are exact: what a predecessor does not take for its key,
// dray does not either.
func (d *document) decode(v any, why func(toml.Key) error) error {
	md, err := toml.Decode(d.text, v)
	if err != nil {
		return d.syntax(err)
	}
	keys := md.Undecoded()
	for _, key := range md.Keys() {
		if last := key[len(key)-1]; last != strings.ToLower(last) { // the decoder would take Socket for socket
			keys = append(keys, key)
		}
	}
	for _, key := range keys {
		if err := why(key); err != nil {
			return d.fail(err, key...)
		}
	}
	return nil
}

// fail returns a [*ConfigError] for a key.
func (d *document) fail(err error, key ...string) error {
	e := &ConfigError{Path: d.path, Key: toml.Key(key).String(), Err: err}
	if d.lines {
		e.Line = d.lineOf(key)
	}
	return e
}

// mismatch is how the TOML decoder reports a value of the wrong type: in text.
var mismatch = regexp.MustCompile(`^toml: (?:line ([0-9]+) )?\(last key (".*")\): `)

// syntax returns an error of the TOML decoder without what it quotes of the
// file: near a password that is not in quotes, that would be the password.
func (d *document) syntax(err error) error {
	e := &ConfigError{Path: d.path}
	if parse, ok := errors.AsType[toml.ParseError](err); ok {
		e.Key, e.Line, e.Err = parse.LastKey, parse.Position.Line, errors.New("not valid TOML at or after this place")
	} else {
		e.Err = errors.New("value of the wrong type")
		if found := mismatch.FindStringSubmatch(err.Error()); found != nil {
			e.Line, _ = strconv.Atoi(found[1])
			e.Key, _ = strconv.Unquote(found[2])
		}
	}
	if !d.lines {
		e.Line = 0
	}
	return e
}

// here is a TOML value that is never decoded: the decoder says where it stands.
type here struct{}

// UnmarshalTOML returns an error, for its position.
func (*here) UnmarshalTOML(any) error { return errors.New("here") }

// lineOf returns the line of a key, or 0. It goes down by one table at a time,
// because the decoder tells positions in errors only.
func (d *document) lineOf(key toml.Key) int {
	var tables map[string]toml.Primitive
	md, err := toml.Decode(d.text, &tables)
	if err != nil || len(key) == 0 {
		return 0
	}
	level := []map[string]toml.Primitive{tables}
	for i, name := range key {
		var next []map[string]toml.Primitive
		for _, table := range level {
			value, ok := table[name]
			if !ok {
				continue
			}
			if i == len(key)-1 {
				if found, ok := errors.AsType[toml.ParseError](md.PrimitiveDecode(value, &here{})); ok {
					return found.Position.Line
				}
				continue
			}
			var one map[string]toml.Primitive
			var many []map[string]toml.Primitive
			if md.PrimitiveDecode(value, &many) == nil {
				next = append(next, many...)
			} else if md.PrimitiveDecode(value, &one) == nil {
				next = append(next, one)
			}
		}
		level = next
	}
	return 0
}

// tomlOf returns a JSON object as TOML, so that there is one decoder.
func tomlOf(text string) (string, error) {
	decoder := json.NewDecoder(strings.NewReader(text))
	var top map[string]any
	if err := decoder.Decode(&top); err != nil {
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			line := 1 + strings.Count(text[:min(int64(len(text)), syntax.Offset)], "\n")
			return "", fmt.Errorf("line %d: not valid JSON", line)
		}
		return "", errors.New("not valid JSON")
	}
	if decoder.More() {
		return "", errors.New("more than one JSON value")
	}
	value, err := plain(top, maxDepth)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	if err := toml.NewEncoder(&out).Encode(value); err != nil {
		return "", fmt.Errorf("convert JSON: %w", err)
	}
	return out.String(), nil
}

// plain makes a JSON value fit for TOML: without nulls, whole numbers as
// integers. It returns nil for a null.
func plain(value any, depth int) (any, error) {
	if depth == 0 {
		return nil, errDeep
	}
	switch v := value.(type) {
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return int64(v), nil
		}
	case map[string]any:
		for name, item := range v {
			item, err := plain(item, depth-1)
			if err != nil {
				return nil, err
			}
			if v[name] = item; item == nil {
				delete(v, name)
			}
		}
	case []any:
		kept := v[:0]
		for _, item := range v {
			item, err := plain(item, depth-1)
			if err != nil {
				return nil, err
			}
			if item != nil {
				kept = append(kept, item)
			}
		}
		return kept, nil
	}
	return value, nil
}
