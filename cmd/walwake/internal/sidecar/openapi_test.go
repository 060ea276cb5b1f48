package sidecar

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/walwake/walwake/pgnotify"
	"github.com/walwake/walwake/tracker"
)

// spec is openapi.yaml, made strict: an answer may have no field that it does not name.
type spec struct {
	doc map[string]any

	mu      sync.Mutex
	schemas map[string]*jsonschema.Schema // by pointer; guarded by mu
	compile *jsonschema.Compiler
}

var theSpec = sync.OnceValue(func() *spec {
	var doc map[string]any
	text, err := yaml.YAMLToJSON(openAPI)
	if err != nil {
		panic(err)
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		panic(err)
	}
	strict(doc)
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	if text, err = json.Marshal(doc); err != nil {
		panic(err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		panic(err)
	}
	if err := c.AddResource("openapi.json", value); err != nil {
		panic(err)
	}
	return &spec{doc: doc, compile: c, schemas: map[string]*jsonschema.Schema{}}
})

// strict closes every object that has properties.
func strict(v any) {
	switch v := v.(type) {
	case map[string]any:
		if _, is := v["properties"].(map[string]any); is && v["type"] == "object" {
			v["additionalProperties"] = false
		}
		for _, below := range v {
			strict(below)
		}
	case []any:
		for _, below := range v {
			strict(below)
		}
	}
}

// at follows a path of keys, and references.
func (s *spec) at(keys ...string) (map[string]any, bool) {
	node := s.doc
	for _, key := range keys {
		next, is := node[key].(map[string]any)
		if !is {
			return nil, false
		}
		if ref, is := next["$ref"].(string); is {
			if next, is = s.at(strings.Split(strings.TrimPrefix(ref, "#/"), "/")...); !is {
				return nil, false
			}
		}
		node = next
	}
	return node, true
}

// schema is that of the data of an event, or of another part.
func (s *spec) schema(pointer string) (*jsonschema.Schema, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.schemas[pointer]; c != nil {
		return c, nil
	}
	c, err := s.compile.Compile("openapi.json#" + pointer)
	if err == nil {
		s.schemas[pointer] = c
	}
	return c, err
}

// check reports how an answer differs from what the file says of it.
func (s *spec) check(method, path string, a answer) error {
	kind, _, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	if err != nil {
		return err
	}
	if _, known := s.at("paths", path); !known {
		if kind != "application/problem+json" {
			return nil // the page's
		}
		return s.valid("/components/schemas/Problem", a.body)
	}
	responses, is := s.at("paths", path, strings.ToLower(method), "responses")
	if !is { // a method that is not allowed
		responses, _ = s.at("paths", path, "get", "responses")
	}
	code := fmt.Sprint(a.status)
	response, is := responses[code].(map[string]any)
	if !is {
		return fmt.Errorf("%s %s: status %s is not in openapi.yaml: %s", method, path, code, a.body)
	}
	if ref, is := response["$ref"].(string); is {
		response, _ = s.at(strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
	}
	content, _ := response["content"].(map[string]any)
	media, is := content[kind].(map[string]any)
	if !is {
		return fmt.Errorf("%s %s: %s as %s is not in openapi.yaml", method, path, code, kind)
	}
	if !strings.HasSuffix(kind, "json") {
		return nil
	}
	schema, _ := media["schema"].(map[string]any)
	ref, _ := schema["$ref"].(string)
	if ref == "#/components/schemas/WaitProblem" && !bytes.Contains(a.body, []byte(`"waited_us"`)) {
		ref = "#/components/schemas/Problem" // it was refused before it began
	}
	if err := s.valid(strings.TrimPrefix(ref, "#"), a.body); err != nil {
		return fmt.Errorf("%s %s: %s: %w: %s", method, path, code, err, a.body)
	}
	return nil
}

func (s *spec) valid(pointer string, body []byte) error {
	schema, err := s.schema(pointer)
	if err != nil {
		return err
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return err
	}
	return schema.Validate(v)
}

// checkEvent is check for an event of a stream.
func (s *spec) checkEvent(e sent) error {
	name, is := map[string]string{"state": "Position", "position": "Moved", "event": "Event", "end": "End"}[e.name]
	if !is {
		return fmt.Errorf("event %q is not in openapi.yaml", e.name)
	}
	if err := s.valid("/components/schemas/"+name, []byte(e.data)); err != nil {
		return fmt.Errorf("event %s: %w: %s", e.name, err, e.data)
	}
	return nil
}

func TestTheFileIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if a := start(t, nil).get("/v1/openapi.yaml"); a.status != http.StatusOK || !bytes.Equal(a.body, openAPI) {
			t.Errorf("got %d %s", a.status, a.body)
		}
	})
}

// Each answer that any test of this package gets is compared with openapi.yaml: see kit.do. This one gets
// each that the file has.
func TestEveryStatusOfEveryRouteIsAnswered(t *testing.T) {
	missing := map[string]bool{}
	paths, _ := theSpec().at("paths")
	for path := range paths {
		methods, _ := theSpec().at("paths", path)
		for method := range methods {
			responses, _ := theSpec().at("paths", path, method, "responses")
			for code := range responses {
				missing[strings.ToUpper(method)+" "+path+" "+code] = true
			}
		}
	}
	if len(missing) < 50 {
		t.Fatalf("openapi.yaml has %d answers", len(missing))
	}
	routes := slices.Sorted(maps.Keys((&Server{}).routes()))
	if named := slices.Sorted(maps.Keys(paths)); !slices.Equal(named, routes) {
		t.Errorf("openapi.yaml has the paths %q, the server %q", named, routes)
	}
	took := func(method, path string, status int) {
		if method == http.MethodHead || method == http.MethodDelete {
			method = http.MethodGet
		}
		delete(missing, fmt.Sprintf("%s %s %d", method, path, status))
	}
	synctest.Test(t, func(t *testing.T) { driveAll(t, took) })
	if len(missing) > 0 {
		t.Errorf("the server does not answer: %q", slices.Sorted(maps.Keys(missing)))
	}
}

// driveAll has every route answer all that it can.
func driveAll(t *testing.T, took func(method, path string, status int)) {
	const secret = "0123456789abcdef"
	fleet := func() []pgnotify.Member {
		return []pgnotify.Member{
			{Name: "db2", Instance: "1", Position: token(1, 100), Known: true, Source: "poll", Heard: time.Now(), Age: time.Second},
			{Name: "db3", Instance: "1", Heard: time.Now(), Silent: true},
		}
	}
	change := func(c *Config) {
		c.Waiters, c.Streams, c.Fleet, c.PrimaryNamed = 1, 1, fleet, true
		c.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; version=0.0.4")
			_, _ = io.WriteString(w, "up 1\n")
		})
	}
	k, locked := start(t, change), start(t, func(c *Config) { change(c); c.Bearer = func() string { return secret } })
	send := func(k *kit, method, path string, set func(*http.Request)) answer {
		req := k.request(method, path)
		if set != nil {
			set(req)
		}
		a := k.do(req)
		if a.err != nil {
			t.Fatalf("%s %s: %v", method, path, a.err)
		}
		took(method, req.URL.Path, a.status)
		return a
	}
	send(k, http.MethodGet, "/v1/wait?token=0/1&timeout=0", nil)
	send(k, http.MethodGet, "/v1/position", nil)
	send(k, http.MethodGet, "/readyz", nil)
	k.script.observe(tracker.Observation{LSN: 100, System: system, Timeline: 2, History: tracker.History{{Timeline: 1, End: 50}}})
	synctest.Wait()
	for path := range k.server.routes() {
		if path == "/v1/wait" || path == "/v1/stream" {
			continue
		}
		send(k, http.MethodGet, path, nil)
		send(k, http.MethodGet, path+"?unknown=1", nil)
	}
	k.tr.PrimaryAt(token(2, 200))
	time.Sleep(time.Millisecond)
	send(k, http.MethodGet, "/v1/position", nil)
	send(k, http.MethodGet, "/readyz?max_lag=1", nil)
	for _, target := range []string{token(2, 100).String(), token(2, 101).String(), token(1, 60).String(), "garbage"} {
		send(k, http.MethodGet, "/v1/wait?timeout=1ms&token="+target, nil)
	}
	for path := range k.server.routes() {
		send(k, http.MethodDelete, path, nil)
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			if method == http.MethodPost && path != "/v1/stream" {
				continue
			}
			query := map[string]string{"/v1/wait": "?token=0/1", "/v1/stream": "?keepalive=nonsense"}[path]
			send(k, method, path+query, nil)
			send(k, method, path+query, func(r *http.Request) { r.Host = "evil.example" })
			send(k, method, path+query, func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") })
			send(locked, method, path+query, nil)
			if path != "/v1/stream" {
				send(k, method, path+query, func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader("x")), 1 })
			}
		}
	}
	waits := k.asked("/v1/wait?timeout=1m&token=0/FF")
	s := k.stream("")
	took(http.MethodGet, "/v1/stream", http.StatusOK)
	synctest.Wait()
	send(k, http.MethodGet, "/v1/wait?token=0/FF", nil)
	send(k, http.MethodGet, "/v1/stream", nil)
	send(k, http.MethodPost, "/v1/stream", nil)
	s.close()
	synctest.Wait()
	k.demanding("")
	took(http.MethodPost, "/v1/stream", http.StatusOK)
	k.server.shut(errShutdown)
	(<-waits).is(t, shuttingDown)
	for path := range k.server.routes() {
		send(k, http.MethodGet, path, nil)
	}
	send(k, http.MethodPost, "/v1/stream", nil)
}
