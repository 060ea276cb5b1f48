package ryw_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/replication/replicationtest"
	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

// profiles is a whole service: each user has a profile, which is written on the
// primary and read from the replicas.
type profiles struct{ router *ryw.Router }

const profilesTable = `CREATE TABLE profiles (name text PRIMARY KEY, about text NOT NULL)`

// newProfiles returns the service. The keys sign the cookie that takes each user's
// session from one request to the next.
func newProfiles(router *ryw.Router, keys *ryw.Keys) (http.Handler, error) {
	sessions, err := ryw.Middleware(ryw.HTTPConfig{
		Keys:     keys,
		Insecure: true, // not where there is TLS, as there should be
		Logger:   slog.Default(),
	})
	if err != nil {
		return nil, err
	}
	return sessions(profiles{router}.routes()), nil
}

func (p profiles) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /profiles/{name}", p.show)
	mux.HandleFunc("POST /profiles/{name}", p.submit)
	mux.HandleFunc("PUT /profiles/{name}", p.put)
	mux.HandleFunc("DELETE /profiles/{name}", p.remove)
	return mux
}

// show reads from a replica that has what this user has written.
func (p profiles) show(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	var about string
	err := p.router.Read(ctx, func(q ryw.Queries) error {
		return q.QueryRow(ctx, `SELECT about FROM profiles WHERE name = $1`, r.PathValue("name")).Scan(&about)
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		http.NotFound(w, r)
	case err != nil:
		unavailable(w, r, err)
	default:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, about) // who has gone away reads nothing
	}
}

// submit is of a form: the browser is sent to the page, which shows what was written.
func (p profiles) submit(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<16)
	if err := p.save(r.Context(), r.PathValue("name"), r.PostFormValue("about")); err != nil {
		unavailable(w, r, err)
		return
	}
	http.Redirect(w, r, r.URL.Path, http.StatusSeeOther)
}

// put says nothing: net/http answers 200, with the cookie all the same.
func (p profiles) put(w http.ResponseWriter, r *http.Request) {
	about, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<16))
	if err != nil {
		http.Error(w, "too long, or cut off", http.StatusBadRequest)
		return
	}
	if err := p.save(r.Context(), r.PathValue("name"), string(about)); err != nil {
		unavailable(w, r, err)
	}
}

func (p profiles) remove(w http.ResponseWriter, r *http.Request) {
	if err := p.exec(r.Context(), `DELETE FROM profiles WHERE name = $1`, r.PathValue("name")); err != nil {
		unavailable(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (p profiles) save(ctx context.Context, name, about string) error {
	return p.exec(ctx, `INSERT INTO profiles VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET about = excluded.about`, name, about)
}

// exec writes on the primary. The session of ctx then reads where that is replayed.
func (p profiles) exec(ctx context.Context, sql string, args ...any) error {
	_, err := p.router.Write(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sql, args...)
		return err
	})
	if errors.Is(err, ryw.ErrNoToken) {
		return nil // it is committed, and the session reads from the primary until it writes again
	}
	return err
}

func unavailable(w http.ResponseWriter, r *http.Request, err error) {
	slog.ErrorContext(r.Context(), "profiles", "error", err)
	http.Error(w, "try again later", http.StatusServiceUnavailable)
}

// connect returns a router to a primary and its replicas, and what closes it. It
// follows the replicas until then, or until ctx ends.
func connect(ctx context.Context, primary string, replicas ...string) (_ *ryw.Router, shut func(), err error) {
	var opened []func()
	shut = func() {
		for _, shutOne := range slices.Backward(opened) {
			shutOne()
		}
	}
	defer func() {
		if err != nil {
			shut()
		}
	}()
	open := func(dsn string) (*pgxpool.Pool, error) {
		pool, err := pgxpool.New(ctx, dsn)
		if err == nil {
			opened = append(opened, pool.Close)
		}
		return pool, err
	}
	var cfg ryw.Config
	if cfg.Primary, err = open(primary); err != nil {
		return nil, nil, err
	}
	for i, dsn := range replicas {
		replica := ryw.Replica{Name: fmt.Sprintf("replica %d", i+1)}
		if replica.Pool, err = open(dsn); err != nil {
			return nil, nil, err
		}
		source, err := replication.New(replication.Config{Replica: replication.Server{DSN: dsn}})
		if err != nil {
			return nil, nil, err
		}
		if replica.Tracker, err = tracker.New(tracker.Config{Source: source, Name: replica.Name}); err != nil {
			return nil, nil, err
		}
		following := make(chan struct{})
		go func() {
			defer close(following)
			_ = replica.Tracker.Run(ctx) // it ends when it is closed, or with ctx
		}()
		opened = append(opened, func() { replica.Tracker.Close(); <-following })
		cfg.Replicas = append(cfg.Replicas, replica)
	}
	router, err := ryw.New(cfg)
	return router, shut, err
}

// A whole service over net/http: a primary, two replicas, and users who see what
// they have written.
func Example_service() {
	ctx := context.Background()
	cluster, err := replicationtest.New(ctx, replicationtest.Options{Standbys: 2}) // yours has addresses
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cluster.Close()
	if err := cluster.Primary.Exec(ctx, profilesTable); err != nil {
		fmt.Println(err)
		return
	}

	router, shut, err := connect(ctx, cluster.Primary.DSN(), cluster.Standbys[0].DSN(), cluster.Standbys[1].DSN())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer shut()
	secret := make(ryw.Secret, ryw.MinSecretLen) // yours comes from where secrets are kept, the same for every process
	_, _ = rand.Read(secret)
	keys, err := ryw.NewKeys(ryw.KeysConfig{Secrets: []ryw.Secret{secret}, Audience: "profiles"})
	if err != nil {
		fmt.Println(err)
		return
	}
	service, err := newProfiles(router, keys)
	if err != nil {
		fmt.Println(err)
		return
	}
	server := httptest.NewServer(service) // yours is an http.Server with timeouts
	defer server.Close()

	browser := &http.Client{}
	browser.Jar, _ = cookiejar.New(nil)
	page, err := browser.PostForm(server.URL+"/profiles/ada", url.Values{"about": {"likes engines"}}) //nolint:noctx // what a form does
	if err != nil {
		fmt.Println(err)
		return
	}
	defer page.Body.Close()
	text, _ := io.ReadAll(page.Body)
	fmt.Println(page.Request.Method, page.Request.URL.Path, page.Status)
	fmt.Println(string(text))
	// Output:
	// GET /profiles/ada 200 OK
	// likes engines
}
