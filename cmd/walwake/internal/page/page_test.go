package page_test

import (
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"

	"github.com/walwake/walwake/cmd/walwake/internal/page"
)

// answer is what a request got.
type answer struct {
	code   int
	header http.Header
	body   string
}

// ask sends a request; header is name and value, in turns.
func ask(t *testing.T, method, path string, header ...string) answer {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), method, path, http.NoBody)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	page.Handler().ServeHTTP(w, req)
	return answer{w.Code, w.Header(), w.Body.String()}
}

// files are the paths of all that is served.
func files(t *testing.T) []string {
	t.Helper()
	var all []string
	err := fs.WalkDir(os.DirFS("assets"), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, strings.TrimSuffix("/"+name, "index.html"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestEveryFileIsServedWithItsTypeAndCachedByItsContent(t *testing.T) {
	types := map[string]string{
		"": "text/plain; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
	}
	etags := map[string]bool{}
	for _, file := range files(t) {
		want := types[path.Ext(file)]
		if file == "/" {
			want = "text/html; charset=utf-8"
		}
		got := ask(t, http.MethodGet, file)
		h := got.header
		if got.code != http.StatusOK || h.Get("Content-Type") != want || h.Get("Cache-Control") != "no-cache" || got.body == "" {
			t.Errorf("%s: got %d, %v", file, got.code, h)
		}
		etag := h.Get("ETag")
		if etags[etag] || !strings.HasPrefix(etag, `"`) {
			t.Errorf("%s: the ETag %s is another file's, or none", file, etag)
		}
		etags[etag] = true
		if again := ask(t, http.MethodGet, file, "If-None-Match", etag); again.code != http.StatusNotModified || again.body != "" {
			t.Errorf("%s: want no body for who has it, got %d with %d bytes", file, again.code, len(again.body))
		}
		if other := ask(t, http.MethodGet, file, "If-None-Match", `"another"`); other.code != http.StatusOK {
			t.Errorf("%s: who has another one got %d", file, other.code)
		}
		if head := ask(t, http.MethodHead, file); head.code != http.StatusOK || head.body != "" || head.header.Get("ETag") != etag {
			t.Errorf("%s: HEAD got %d with %d bytes", file, head.code, len(head.body))
		}
	}
}

func TestEveryAnswerForbidsOtherHostsAndInlineCode(t *testing.T) {
	requests := [][2]string{{http.MethodGet, "/nothing"}, {http.MethodGet, "/index.html"}, {http.MethodGet, "/uplot/"}, {http.MethodPost, "/"}}
	for _, file := range files(t) {
		requests = append(requests, [2]string{http.MethodGet, file})
	}
	for _, r := range requests {
		h := ask(t, r[0], r[1]).header
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
			"Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
		} {
			if h.Get(name) != want {
				t.Errorf("%s: %s: want %s, got %q", r, name, want, h.Get(name))
			}
		}
		directives := strings.Split(h.Get("Content-Security-Policy"), "; ")
		if directives[0] != "default-src 'self'" {
			t.Errorf("%s: got %q", r, directives)
		}
		for _, d := range directives[1:] { // what is not named falls back to the first
			name, value, _ := strings.Cut(d, " ")
			if value != "'none'" && d != "require-trusted-types-for 'script'" {
				t.Errorf("%s: %s allows %s", r, name, value)
			}
		}
	}
	if got := ask(t, http.MethodGet, "/nothing"); got.code != http.StatusNotFound {
		t.Errorf("got %d", got.code)
	}
	if got := ask(t, http.MethodPost, "/"); got.code != http.StatusMethodNotAllowed || got.header.Get("Allow") != "GET, HEAD" {
		t.Errorf("got %d, %v", got.code, got.header)
	}
}

// References of the files to others, that are loaded with them.
var (
	inHTML = regexp.MustCompile(`(?:href|src)="([^"]*)"`)
	inJS   = regexp.MustCompile(`(?m)^import .* from "([^"]*)";$`)
	inCSS  = regexp.MustCompile(`url\(([^)]*)\)|@import`)
)

func TestWhatTheFilesReferToIsServed(t *testing.T) {
	html := ask(t, http.MethodGet, "/").body
	reached := map[string]bool{"/": true}
	var follow func(from string, references [][]string)
	follow = func(from string, references [][]string) {
		for _, ref := range references {
			to := path.Join(path.Dir(from), ref[1])
			if strings.HasPrefix(ref[1], "#") || strings.HasPrefix(ref[1], "v1/") || ref[1] == "metrics" || reached[to] {
				continue // the sidecar's own
			}
			reached[to] = true
			got := ask(t, http.MethodGet, to)
			if got.code != http.StatusOK {
				t.Errorf("%s refers to %s: %d", from, ref[1], got.code)
			}
			if path.Ext(to) == ".js" && !strings.HasPrefix(to, "/uplot/") {
				follow(to, inJS.FindAllStringSubmatch(got.body, -1))
			}
			if path.Ext(to) == ".css" && inCSS.MatchString(got.body) {
				t.Errorf("%s loads something", to)
			}
		}
	}
	follow("/", inHTML.FindAllStringSubmatch(html, -1))
	for _, file := range files(t) {
		if !reached[file] {
			t.Errorf("%s is served, and nothing refers to it", file)
		}
	}
	if found := regexp.MustCompile(`(?i)<style|<script>|\son[a-z]+=|\sstyle=|javascript:`).FindString(html); found != "" {
		t.Errorf("inline code in the page: %s", found)
	}
}

// The page is to come at once also through a tunnel to a far machine.
func TestTheFilesAreFew(t *testing.T) {
	const most = 120 << 10
	total := 0
	for _, file := range files(t) {
		total += len(ask(t, http.MethodGet, file).body)
	}
	t.Logf("%d files, %d bytes", len(files(t)), total)
	if total > most {
		t.Errorf("want at most %d bytes, got %d", most, total)
	}
}

// The licence of what is copied has to go with it, and the version is that of the copy.
func TestTheChartLibraryComesWithItsLicence(t *testing.T) {
	licence := ask(t, http.MethodGet, "/uplot/LICENSE")
	if licence.code != http.StatusOK || !strings.HasPrefix(licence.body, "The MIT License (MIT)") || !strings.Contains(licence.body, "Leon Sorokin") {
		t.Errorf("got %d: %.200s", licence.code, licence.body)
	}
	library := ask(t, http.MethodGet, "/uplot/uPlot.iife.min.js").body
	if banner, _, _ := strings.Cut(library, "\n"); !strings.Contains(banner, "(v1.6.32)") {
		t.Errorf("got %.200s", banner)
	}
}
