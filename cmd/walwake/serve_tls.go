package main

import "crypto/tls"

// readTLS returns what listeners but Unix sockets speak TLS with, nil where no certificate is named. It is read again
// when it is renewed.
func (s *serveCommand) readTLS() (*tls.Config, error) {
	if s.tlsCert == "" && s.tlsKey == "" {
		return nil, nil
	}
	if s.tlsCert == "" || s.tlsKey == "" {
		return nil, usagef("--tls-cert and --tls-key: name both, or neither")
	}
	pair, err := newRotated("certificate", s.log, func() (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(s.tlsCert, s.tlsKey)
		if err != nil {
			return nil, usagef("--tls-cert and --tls-key: %w", err)
		}
		return &cert, nil
	}, s.tlsCert, s.tlsKey)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair.now(), nil },
		MinVersion:     tls.VersionTLS12,
	}, nil
}

// bearerToken returns what has the token that callers must show, nil where none is wanted. A file of it is read again when
// it is replaced.
func (s *serveCommand) bearerToken() (func() string, error) {
	var files []string
	if s.bearerFile != "" {
		files = append(files, s.bearerFile)
	}
	token, err := newRotated("bearer token", s.log, func() (string, error) { return s.readBearer(s.bearerFile) }, files...)
	if err != nil || token.now() == "" {
		return nil, err
	}
	return token.now, nil
}
