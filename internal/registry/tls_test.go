package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority signs certificates of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue returns a certificate and key, in PEM.
func (a *authority) issue(t *testing.T, edit func(*x509.Certificate)) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if edit != nil {
		edit(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

// serve starts a registry with a certificate of a.
func (a *authority) serve(t *testing.T, conf *tls.Config, edit func(*x509.Certificate)) *fake {
	t.Helper()
	certPEM, keyPEM := a.issue(t, edit)
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	conf.Certificates = []tls.Certificate{pair}
	f := unstarted(nil)
	f.manifests["v1"] = []byte("{}")
	f.Server = httptest.NewUnstartedServer(f)
	f.Config.ErrorLog = quiet()
	f.TLS = conf
	f.StartTLS()
	t.Cleanup(f.Close)
	return f
}

// certsDir writes a certs.d directory for host.
func certsDir(t *testing.T, host string, files map[string][]byte) string {
	t.Helper()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, host), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(root, host, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestAuthorities(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	f := a.serve(t, &tls.Config{}, nil)
	for _, tt := range []struct {
		name string
		o    Options
		bad  bool
	}{
		{"none", Options{}, true},
		{"for all hosts", Options{CAs: a.pem}, false},
		{"for the host", Options{Hosts: []Host{{Match: f.host(), Access: Access{CAs: a.pem}}}}, false},
		{"instead of the system's", Options{Hosts: []Host{{Match: ".", Access: Access{CAs: a.pem, OnlyCAs: true}}}}, false},
		{"none at all", Options{Hosts: []Host{{Match: ".", Access: Access{CAs: []byte("none"), OnlyCAs: true}}}}, true},
		{"not PEM", Options{Hosts: []Host{{Match: ".", Access: Access{CAs: []byte("none")}}}}, true},
		{"of another host", Options{Hosts: []Host{{Match: "other.io", Access: Access{CAs: a.pem}}}}, true},
		{"directory", Options{CertDirs: []string{certsDir(t, f.host(), map[string][]byte{"ca.crt": a.pem})}}, false},
		{"directory of another host", Options{CertDirs: []string{certsDir(t, "other.io", map[string][]byte{"ca.crt": a.pem})}}, true},
		{"not checked", Options{InsecureSkipVerify: true}, false},
		{"not checked for the host", Options{Hosts: []Host{{Match: ".", Access: Access{InsecureSkipVerify: true}}}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := resolve(t, open(t, newClient(t, tt.o), f.URL))
			if err != nil != tt.bad {
				t.Errorf("got error %v", err)
			}
		})
	}
}

func TestClientCertificate(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	clients := x509.NewCertPool()
	clients.AddCert(a.cert)
	f := a.serve(t, &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}, nil)
	certPEM, keyPEM := a.issue(t, nil)
	with := certsDir(t, f.host(), map[string][]byte{"ca.crt": a.pem, "client.cert": certPEM, "client.key": keyPEM})
	if err := resolve(t, open(t, newClient(t, Options{CertDirs: []string{with}}), f.URL)); err != nil {
		t.Error(err)
	}
	without := certsDir(t, f.host(), map[string][]byte{"ca.crt": a.pem})
	if err := resolve(t, open(t, newClient(t, Options{CertDirs: []string{without}}), f.URL)); err == nil {
		t.Error("no error without a client certificate")
	}
	half := certsDir(t, f.host(), map[string][]byte{"ca.crt": a.pem, "client.cert": certPEM})
	if err := resolve(t, open(t, newClient(t, Options{CertDirs: []string{half}}), f.URL)); err == nil || !strings.Contains(err.Error(), "client.key") {
		t.Errorf("got error %v, want one that names the missing key", err)
	}
}

// What goes wrong while connecting says what to try, and is not repeated where
// repeating cannot help.
func TestConnectionHints(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	plain, secure := newFake(t, nil), a.serve(t, &tls.Config{}, nil)
	named := a.serve(t, &tls.Config{}, func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, []string{"registry.example"} })
	expired := a.serve(t, &tls.Config{}, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	old := a.serve(t, &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}, nil)
	for _, tt := range []struct{ name, url, hint string }{
		{"no TLS", "https://" + plain.host(), "--plain-http or http://" + plain.host()},
		{"TLS", "http://" + secure.host(), "drop http://"},
		{"authority", secure.URL, "--cert-dir"},
		{"name", named.URL, "the name that is in the certificate"},
		{"expired", expired.URL, "dates"},
		{"old TLS", old.URL, ""},
		{"refused", "https://127.0.0.1:1", "nothing listens"},
		{"unknown host", "https://does-not-exist.invalid", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := Options{CAs: a.pem}
			if tt.name == "authority" {
				o.CAs = nil
			}
			c := newClient(t, o)
			err := resolve(t, open(t, c, tt.url))
			if tt.name == "TLS" {
				if err == nil || !strings.Contains(err.Error(), tt.hint) {
					t.Errorf("got error %v, want hint %q", err, tt.hint)
				}
				return
			}
			if e := details(t, err, ErrUnreachable); !strings.Contains(e.Hint, tt.hint) {
				t.Errorf("got hint %q in %v, want %q", e.Hint, err, tt.hint)
			}
			if got := c.Stats().Requests; got != 1 && tt.name != "unknown host" {
				t.Errorf("got %d requests, want 1", got)
			}
		})
	}
}

// A redirect to another host is followed with that host's own certificates.
func TestRedirectUsesCertificatesOfItsHost(t *testing.T) {
	t.Parallel()
	a, b := newAuthority(t), newAuthority(t)
	cdn := b.serve(t, &tls.Config{}, nil)
	origin := a.serve(t, &tls.Config{}, nil)
	origin.hook = func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, cdn.URL+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	}
	dirs := []string{
		certsDir(t, origin.host(), map[string][]byte{"ca.crt": a.pem}),
		certsDir(t, cdn.host(), map[string][]byte{"ca.crt": b.pem}),
	}
	if err := resolve(t, open(t, newClient(t, Options{CertDirs: dirs}), origin.URL)); err != nil {
		t.Error(err)
	}
	if err := resolve(t, open(t, newClient(t, Options{CertDirs: dirs[:1]}), origin.URL)); err == nil {
		t.Error("no error without the other host's authority")
	}
}
