package guest

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"dray/internal/guest/api"
)

// A panic before the engine is asked is one request's problem too.
func TestAnswerCatchesPanic(t *testing.T) {
	t.Parallel()
	s := &service{options: Options{Log: slog.New(slog.DiscardHandler)}}
	_, _, err := s.answer(t.Context(), func(any) error { panic("broken") }, &api.ImagePullRequest{})
	if !errors.Is(err, errPanic) {
		t.Errorf("got %v, want errPanic", err)
	}
	if code := status.Code(s.refuse(err)); code != codes.Internal {
		t.Errorf("got code %s, want Internal", code)
	}
}

func requestHeader(size uint32, kind byte) []byte {
	header := make([]byte, headerBytes)
	binary.BigEndian.PutUint32(header, size)
	header[8] = kind
	return header
}

// FuzzFrames feeds a stream whole and byte by byte: both must see the same
// frames, none after the first of another kind.
func FuzzFrames(f *testing.F) {
	f.Add(requestHeader(0, kindRequest))
	f.Add(append(requestHeader(3, kindRequest), "abc"...))
	f.Add(append(append(requestHeader(1, kindRequest), 'a'), requestHeader(0, 3)...))
	f.Add(append(requestHeader(0, kindRequest), requestHeader(1<<32-1, kindRequest)...))
	f.Fuzz(func(t *testing.T, stream []byte) {
		whole := frames{kind: kindRequest}
		begun, ended, ok := whole.add(stream)
		single := frames{kind: kindRequest}
		var begunSum, endedSum int
		okSingle := true
		for i := range stream {
			b, e, fine := single.add(stream[i : i+1])
			begunSum, endedSum = begunSum+b, endedSum+e
			if okSingle = fine; !fine {
				break
			}
		}
		if begun != begunSum || ended != endedSum || ok != okSingle {
			t.Errorf("whole: %d begun, %d ended, %v; byte by byte: %d, %d, %v", begun, ended, ok, begunSum, endedSum, okSingle)
		}
		if ended > begun || begun > len(stream)/headerBytes {
			t.Errorf("%d begun, %d ended in %d bytes", begun, ended, len(stream))
		}
	})
}

func FuzzOneLine(f *testing.F) {
	f.Add("pull a:\n\tGet \"https://me:secret@example.com/v2/?sig=1\": refused\u2028\xff")
	f.Add(strings.Repeat("é", maxMessage))
	f.Fuzz(func(t *testing.T, text string) {
		got := oneLine(text)
		if strings.ContainsFunc(got, unicode.IsControl) || !utf8.ValidString(got) || len(got) > maxMessage+len("…") {
			t.Errorf("got %q", got)
		}
	})
}
