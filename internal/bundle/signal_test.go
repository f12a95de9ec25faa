package bundle

import (
	"errors"
	"syscall"
	"testing"
)

func TestParseSignal(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]syscall.Signal{
		"": syscall.SIGTERM, "SIGINT": syscall.SIGINT, "int": syscall.SIGINT, "sigquit": syscall.SIGQUIT, "9": syscall.SIGKILL,
		"37": 37, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-14": 50, "SIGRTMAX": 64,
	} {
		if got, err := ParseSignal(in); got != want || err != nil {
			t.Errorf("%q: got %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"0", "65", "-1", "SIG", "NOPE", "RTMIN-1", "RTMAX+1", "RTMIN+31", "RTMIN3", "RTMIN+", "RTMIN+x", "300"} {
		if got, err := ParseSignal(in); !errors.Is(err, ErrOption) {
			t.Errorf("%q: got %d, %v, want ErrOption", in, got, err)
		}
	}
}

func FuzzParseSignal(f *testing.F) {
	f.Add("SIGRTMIN+3")
	f.Fuzz(func(t *testing.T, s string) {
		if got, err := ParseSignal(s); err == nil && (got < 1 || got > signalMax) {
			t.Errorf("%q: got %d", s, got)
		}
	})
}
