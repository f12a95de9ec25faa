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
	far := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler(&paced{ResponseWriter: w, start: time.Now()}, r)
	}))
	b.Cleanup(far.Close)
	for _, tt := range []struct {
		name    string
		server  *httptest.Server
		streams int
		pays    func(leadBytes int64, waited, elapsed time.Duration) bool
	}{
		{"http/one stream", plain, 1, networkBound},
		{"http/as it pays", plain, 4, networkBound},
		{"http/four ranges", plain, 4, always},
		{"https/one stream", secure, 1, networkBound},
		{"https/four ranges", secure, 4, always},
		{"50 MB per s and connection/one stream", far, 1, networkBound},
		{"50 MB per s and connection/as it pays", far, 4, networkBound},
	} {
		b.Run(tt.name, func(b *testing.B) {
			client, err := NewClient(Options{AuthFiles: []string{}, InsecureSkipVerify: true, Ranges: Ranges{Streams: tt.streams}})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = client.Close() })
			client.pays = tt.pays
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

// paced sends at most 50 MB per second.
type paced struct {
	http.ResponseWriter

	start time.Time
	sent  int
}

func (p *paced) Write(b []byte) (int, error) {
	n, err := p.ResponseWriter.Write(b)
	p.sent += n
	time.Sleep(time.Until(p.start.Add(time.Duration(p.sent) * time.Second / 50e6)))
	return n, err
}
