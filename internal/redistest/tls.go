//go:build unix

package redistest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Certificate is what lets a server use a certificate of a private authority for
// 127.0.0.1, without asking for a client's.
type Certificate struct {
	Authority string      // the authority's file (PEM)
	Settings  [][2]string // names and values of Redis's configuration
}

// Args are the settings as on the command line of redis-server.
func (c *Certificate) Args() (args []string) {
	for _, setting := range c.Settings {
		args = append(args, "--"+setting[0], setting[1])
	}
	return args
}

// Lines are the settings as in a configuration file.
func (c *Certificate) Lines() (lines []string) {
	for _, setting := range c.Settings {
		lines = append(lines, setting[0]+" "+setting[1])
	}
	return lines
}

// NewCertificate makes a private authority and a certificate of it.
func NewCertificate(t testing.TB) *Certificate {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		must(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return file
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a private authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	serverDER, err := x509.CreateCertificate(rand.Reader, server, ca, &key.PublicKey, caKey)
	must(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	authority := write("authority.pem", "CERTIFICATE", caDER)
	return &Certificate{Authority: authority, Settings: [][2]string{
		{"tls-cert-file", write("server.pem", "CERTIFICATE", serverDER)},
		{"tls-key-file", write("server.key", "PRIVATE KEY", keyDER)},
		{"tls-ca-cert-file", authority},
		{"tls-auth-clients", "no"},
	}}
}
