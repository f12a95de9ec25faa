package registry

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"dray/internal/oci"
)

func BenchmarkBlob(b *testing.B) {
	const sizeBytes = 128 << 20
	content := make([]byte, sizeBytes)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	})
	plain := httptest.NewServer(handler)
	b.Cleanup(plain.Close)
	secure := httptest.NewTLSServer(handler)
	b.Cleanup(secure.Close)
	for _, tt := range []struct {
		name    string
		server  *httptest.Server
		streams int
		pays    bool
	}{
		{"http/one stream", plain, 1, false},
		{"http/one stream after a lead", plain, 4, false},
		{"http/four ranges", plain, 4, true},
		{"https/one stream", secure, 1, false},
		{"https/four ranges", secure, 4, true},
	} {
		b.Run(tt.name, func(b *testing.B) {
			client, err := NewClient(Options{AuthFiles: []string{}, InsecureSkipVerify: true, Ranges: Ranges{Streams: tt.streams}})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = client.Close() })
			client.pays = func(time.Duration, time.Duration) bool { return tt.pays }
			ref, err := oci.ParseReference(tt.server.URL + "/bench/image:v1")
			if err != nil {
				b.Fatal(err)
			}
			repository, err := client.Repository(ref)
			if err != nil {
				b.Fatal(err)
			}
			d := oci.Descriptor{Digest: oci.DigestBytes(content), Size: sizeBytes}
			buf := make([]byte, 256<<10)
			b.SetBytes(sizeBytes)
			b.ReportAllocs()
			for b.Loop() {
				r, err := repository.Blob(b.Context(), d, 0)
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, buf)
				if err != nil || n != sizeBytes {
					b.Fatalf("read %d bytes: %v", n, err)
				}
				_ = r.Close()
			}
		})
	}
}
