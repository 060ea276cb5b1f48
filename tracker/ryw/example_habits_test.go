package ryw_test

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/walwake/walwake/tracker/ryw"
)

// What sqlc generates takes a read's Queries, and a write's transaction.
func ExampleRouter_sqlc() {
	h := newHabits() // a primary and a replica with an empty table of notes
	defer h.close()
	router, ctx := h.pgx()

	_, err := router.Write(ctx, func(tx pgx.Tx) error {
		return newNotesPgx(tx).AddNote(ctx, "buy milk")
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	var notes []note
	err = router.Read(ctx, func(q ryw.Queries) (err error) {
		notes, err = newNotesPgx(q).ListNotes(ctx)
		return err
	})
	fmt.Println(notes, err)
	// Output: [{1 buy milk}] <nil>
}

// Who scans with pgx or with pgxscan gives the read's Queries to it.
func ExampleRouter_pgxscan() {
	h := newHabits()
	defer h.close()
	router, ctx := h.pgx()

	_, err := router.Write(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, addNote, "buy milk")
		return err
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	var notes []note
	err = router.Read(ctx, func(q ryw.Queries) (err error) {
		// pgxscan.Select(ctx, q, &notes, "SELECT …")
		notes, err = selectNotes(ctx, q, "buy milk")
		return err
	})
	fmt.Println(notes, err)
	// Output: [{1 buy milk}] <nil>
}

// What sqlc generates for database/sql takes a read's SQLQueries, and a write's
// transaction.
func ExampleSQLRouter_sqlc() {
	h := newHabits()
	defer h.close()
	router, ctx := h.sql()

	_, err := router.Write(ctx, func(tx *sql.Tx) error {
		return newNotesSQL(tx).AddNote(ctx, "buy milk")
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	var notes []note
	err = router.Read(ctx, func(q ryw.SQLQueries) (err error) {
		notes, err = newNotesSQL(q).ListNotes(ctx)
		return err
	})
	fmt.Println(notes, err)
	// Output: [{1 buy milk}] <nil>
}

// A function that was made for a *sql.DB, *sql.Conn or *sql.Tx and asks no more than
// it needs works in both, and elsewhere as before.
func ExampleSQLRouter_standard() {
	h := newHabits()
	defer h.close()
	router, ctx := h.sql()

	type rowQuerier interface {
		QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	}
	count := func(ctx context.Context, db rowQuerier) (n int, err error) {
		err = db.QueryRowContext(ctx, `SELECT count(*) FROM notes`).Scan(&n)
		return n, err
	}

	_, err := router.Write(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, addNote, "buy milk"); err != nil {
			return err
		}
		n, err := count(ctx, tx)
		fmt.Println("in the transaction:", n)
		return err
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	err = router.Read(ctx, func(q ryw.SQLQueries) error {
		n, err := count(ctx, q)
		fmt.Println("from the replica:", n)
		return err
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	conn, err := h.primaryDB.Conn(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	n, err := count(ctx, conn)
	fmt.Println("from the primary:", n, err)
	// Output:
	// in the transaction: 1
	// from the replica: 1
	// from the primary: 1 <nil>
}

// GORM takes a read's SQLQueries and a write's transaction in place of its own pool.
func ExampleSQLRouter_gorm() {
	h := newHabits()
	defer h.close()
	router, ctx := h.sql()

	_, err := router.Write(ctx, func(tx *sql.Tx) error {
		// g := db.Session(&gorm.Session{NewDB: true, Context: ctx})
		// g.Statement.ConnPool = tx
		// return g.Create(&Note{Text: "buy milk"}).Error
		_, err := tx.ExecContext(ctx, addNote, "buy milk")
		return err
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	var notes []note
	err = router.Read(ctx, func(q ryw.SQLQueries) (err error) {
		// g := db.Session(&gorm.Session{NewDB: true, Context: ctx}) // without the Context it would share its Statement with db
		// g.Statement.ConnPool = q
		// return g.Find(&notes).Error
		notes, err = findNotes(ctx, q)
		return err
	})
	fmt.Println(notes, err)
	// Output: [{1 buy milk}] <nil>
}

// A client of ent is made over a read's SQLQueries. Over a write's transaction ent
// must not begin one of its own, as it does where edges are written too:
//
//	type inTx struct{ *entsql.Driver }
//
//	func (d inTx) Tx(context.Context) (dialect.Tx, error) { return dialect.NopTx(d), nil }
func ExampleSQLRouter_ent() {
	h := newHabits()
	defer h.close()
	router, ctx := h.sql()

	_, err := router.Write(ctx, func(tx *sql.Tx) error {
		// driver := inTx{entsql.NewDriver(dialect.Postgres, entsql.Conn{ExecQuerier: tx})}
		// return ent.NewClient(ent.Driver(driver)).Note.Create().SetText("buy milk").Exec(ctx)
		_, err := tx.ExecContext(ctx, addNote, "buy milk")
		return err
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	var notes []note
	err = router.Read(ctx, func(q ryw.SQLQueries) (err error) {
		// driver := entsql.NewDriver(dialect.Postgres, entsql.Conn{ExecQuerier: q})
		// notes, err = ent.NewClient(ent.Driver(driver)).Note.Query().All(ctx)
		notes, err = allNotes(ctx, q)
		return err
	})
	fmt.Println(notes, err)
	// Output: [{1 buy milk}] <nil>
}

// GORM reads from a ReadDB as from any *sql.DB, here by its dbresolver. Of what it
// writes the session learns by Wrote.
func ExampleRouter_ReadDB_gorm() {
	h := newHabits()
	defer h.close()
	router, ctx := h.pgx()
	reads := router.ReadDB()
	defer reads.Close()

	// db, err := gorm.Open(postgres.New(postgres.Config{Conn: primaryDB}))
	// err = db.Use(dbresolver.Register(dbresolver.Config{
	// 	Replicas: []gorm.Dialector{postgres.New(postgres.Config{Conn: reads})},
	// }))
	// err = db.WithContext(ctx).Create(&Note{Text: "buy milk"}).Error
	if _, err := h.primaryDB.ExecContext(ctx, addNote, "buy milk"); err != nil {
		fmt.Println(err)
		return
	}
	if _, err := router.Wrote(ctx); err != nil {
		fmt.Println(err) // the session reads from the primary then
	}
	// err = db.WithContext(ctx).Find(&notes).Error
	notes, err := findNotes(ctx, reads)
	fmt.Println(notes, err)
	// Output: [{1 buy milk}] <nil>
}

// One client of ent reads from a ReadDB, for all requests. Of what another one writes
// the session learns by Wrote.
func ExampleRouter_ReadDB_ent() {
	h := newHabits()
	defer h.close()
	router, ctx := h.pgx()
	reads := router.ReadDB()
	defer reads.Close()

	// writer := ent.NewClient(ent.Driver(entsql.OpenDB(dialect.Postgres, primaryDB)))
	// reader := ent.NewClient(ent.Driver(entsql.OpenDB(dialect.Postgres, reads)))
	// err := writer.Note.Create().SetText("buy milk").Exec(ctx)
	if _, err := h.primaryDB.ExecContext(ctx, addNote, "buy milk"); err != nil {
		fmt.Println(err)
		return
	}
	if _, err := router.Wrote(ctx); err != nil {
		fmt.Println(err) // the session reads from the primary then
	}
	// notes, err := reader.Note.Query().All(ctx)
	notes, err := allNotes(ctx, reads)
	fmt.Println(notes, err)
	// Output: [{1 buy milk}] <nil>
}
