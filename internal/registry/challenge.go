package registry

import "strings"

// challenge is one way to authenticate that a server offers (RFC 9110, 11.6.1).
type challenge struct {
	scheme string            // lower case: "bearer", "basic"
	params map[string]string // names in lower case
}

// parseChallenges reads WWW-Authenticate headers. What does not follow the
// grammar is skipped: half a challenge is of no use.
func parseChallenges(headers []string) []challenge {
	var all []challenge
	for _, header := range headers {
		p := scanner{header}
		for p.skip(" \t,"); p.rest != ""; p.skip(" \t,") {
			word := p.token()
			if word == "" {
				break
			}
			p.skip(" \t")
			if p.rest == "" || p.rest[0] != '=' {
				all = append(all, challenge{strings.ToLower(word), map[string]string{}})
				continue
			}
			if len(all) == 0 {
				break // a parameter of no scheme
			}
			p.rest = p.rest[1:]
			p.skip(" \t")
			value, ok := p.value()
			if !ok {
				break
			}
			last := all[len(all)-1]
			if _, twice := last.params[strings.ToLower(word)]; !twice {
				last.params[strings.ToLower(word)] = value
			}
		}
	}
	return all
}

// scanner takes pieces off the front of a header.
type scanner struct{ rest string }

// skip drops leading characters of set.
func (s *scanner) skip(set string) { s.rest = strings.TrimLeft(s.rest, set) }

// token takes a token (RFC 9110, 5.6.2), "" when there is none.
func (s *scanner) token() string {
	i := 0
	for i < len(s.rest) && isTokenChar(s.rest[i]) {
		i++
	}
	word := s.rest[:i]
	s.rest = s.rest[i:]
	return word
}

// value takes a token or a quoted string.
func (s *scanner) value() (string, bool) {
	if s.rest == "" || s.rest[0] != '"' {
		// Laxer than a token: realms without quotes are seen in the wild.
		i := strings.IndexAny(s.rest, ", \t\"")
		if i < 0 {
			i = len(s.rest)
		}
		value := s.rest[:i]
		s.rest = s.rest[i:]
		return value, value != ""
	}
	var b strings.Builder
	for i := 1; i < len(s.rest); i++ {
		switch s.rest[i] {
		case '"':
			s.rest = s.rest[i+1:]
			return b.String(), true
		case '\\':
			i++
			if i < len(s.rest) {
				b.WriteByte(s.rest[i])
			}
		default:
			b.WriteByte(s.rest[i])
		}
	}
	return "", false
}

func isTokenChar(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}
