package main

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// misspelt returns the names of variables that are none of walwake's and look like one that is, and that one. Other
// variables that begin as its own do are not its business: those of docker-compose.yml do, and those that Kubernetes
// sets for a Service of that name.
func misspelt(environ []string) [][2]string {
	_, serve := newApp(nil, nil, nil).newServe()
	known := []string{"WALWAKE_BEARER", "WALWAKE_CONFIG", "WALWAKE_PG", sidecarVariable}
	serve.Flags().VisitAll(func(f *pflag.Flag) {
		if isSetting(f) {
			known = append(known, "WALWAKE_"+strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_")))
		}
	})
	known = append(known, "WALWAKE_LOG_LEVEL")
	all, is := &cobra.Command{SuggestionsMinimumDistance: 2}, map[string]bool{} // cobra knows what looks like what
	for _, name := range known {
		is[name] = true
		all.AddCommand(&cobra.Command{Use: name, Run: func(*cobra.Command, []string) {}})
	}
	var found [][2]string
	for _, v := range environ {
		name, _, _ := strings.Cut(v, "=")
		if !strings.HasPrefix(name, "WALWAKE_") || is[name] {
			continue
		}
		if like := all.SuggestionsFor(name); len(like) > 0 {
			found = append(found, [2]string{name, like[0]})
		}
	}
	return found
}
