package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/walwake/walwake/replication"
)

// configFile is a file of settings: a key for each flag, with _ for -.
type configFile struct {
	name   string
	values map[string]configValue
}

// configValue is a setting's text, as its flag would take it.
type configValue struct {
	text string
	line int
}

// readConfig reads a file. It does not know which keys there may be.
func readConfig(name string) (*configFile, error) {
	content, err := os.ReadFile(name)
	if err != nil {
		return nil, usagef("--config: %w", err)
	}
	values, err := parseConfig(content)
	if err != nil {
		return nil, usagef("--config: %s:%w", name, err)
	}
	return &configFile{name, values}, nil
}

const maxConfig = 1 << 20

// lineError is an error at a line. Its text holds nothing of the file but keys: values may be secret.
type lineError struct {
	line int
	text string
}

func (e *lineError) Error() string { return fmt.Sprintf("%d: %s", e.line, e.text) }

// parseConfig reads YAML: one mapping of keys to single values, or to lists of them.
func parseConfig(content []byte) (map[string]configValue, error) {
	if len(content) > maxConfig {
		return nil, &lineError{1, fmt.Sprintf("the file has %d bytes: want at most %d", len(content), maxConfig)}
	}
	file, err := parser.ParseBytes(content, 0, parser.AllowDuplicateMapKey()) // readMapping says more of them
	if err != nil {
		return nil, syntaxError(err)
	}
	values := map[string]configValue{}
	for i, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		if i > 0 {
			return nil, &lineError{lineOf(doc.Body), "a second document: put all settings into one"}
		}
		if err := readMapping(doc.Body, values); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// syntaxError takes the excerpt of the file out of an error.
func syntaxError(err error) error {
	line := 1
	var at yaml.Error
	if errors.As(err, &at) && at.GetToken() != nil && at.GetToken().Position != nil {
		line = at.GetToken().Position.Line
	}
	return &lineError{line, "this is no YAML that can be read: want lines such as listen: " + defaultListen}
}

func readMapping(node ast.Node, values map[string]configValue) error {
	var pairs []*ast.MappingValueNode
	switch n := node.(type) {
	case *ast.MappingNode:
		pairs = n.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{n}
	case *ast.NullNode, *ast.CommentGroupNode:
		return nil
	default:
		return &lineError{lineOf(node), "want settings, each as key: value"}
	}
	for _, p := range pairs {
		key, ok := scalar(p.Key)
		if !ok {
			return &lineError{lineOf(p), "a key that is not a single word"}
		}
		if was, twice := values[key]; twice {
			return &lineError{lineOf(p), fmt.Sprintf("%.64q is given twice, in lines %d and %d: keep one of them", key, was.line, lineOf(p.Key))}
		}
		text, ok := valueText(p.Value)
		if !ok {
			return &lineError{lineOf(p), fmt.Sprintf("%.64q: want a single value, or a list of them", key)}
		}
		values[key] = configValue{text, lineOf(p)}
	}
	return nil
}

func lineOf(n ast.Node) int {
	if t := n.GetToken(); t != nil && t.Position != nil {
		return t.Position.Line
	}
	return 1
}

func valueText(n ast.Node) (string, bool) {
	list, is := n.(*ast.SequenceNode)
	if !is {
		return scalar(n)
	}
	var all []string
	for _, v := range list.Values {
		text, ok := scalar(v)
		if !ok || strings.Contains(text, ",") {
			return "", false
		}
		all = append(all, text)
	}
	return strings.Join(all, ","), true
}

// scalar is the text of a value as it stands in the file, without its quotes.
func scalar(n ast.Node) (string, bool) {
	switch v := n.(type) {
	case *ast.StringNode:
		return v.Value, true
	case *ast.LiteralNode:
		return v.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return v.GetToken().Value, true
	case *ast.NullNode:
		return "", true
	}
	return "", false
}

// settings gives each flag that was not given the value of its variable or, where that is empty, of the file.
func (s *serveCommand) settings(c *cobra.Command) error {
	if !c.Flags().Changed("config") {
		s.config = s.getenv("WALWAKE_CONFIG")
	}
	if s.config != "" {
		var err error
		if s.file, err = readConfig(s.config); err != nil {
			return err
		}
		if err := s.unknownKey(c); err != nil {
			return err
		}
	}
	var failed error
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if failed == nil && !f.Changed && isSetting(f) && !isServer(f) {
			failed = s.setting(f)
		}
	})
	return failed
}

// isSetting reports whether a flag may stand in the file and in the environment.
func isSetting(f *pflag.Flag) bool {
	return f.Name != "config" && f.Name != "help" && f.Name != "check"
}

// isServer reports whether a flag names a server: see named.
func isServer(f *pflag.Flag) bool { return f.Name == "replica" || f.Name == "primary" }

func (s *serveCommand) setting(f *pflag.Flag) error {
	key := strings.ReplaceAll(f.Name, "-", "_")
	variable := "WALWAKE_" + strings.ToUpper(key)
	if text := s.getenv(variable); text != "" {
		if err := setFlag(f, text); err != nil {
			return usagef("%s: %w", variable, err)
		}
		return nil
	}
	if s.file == nil {
		return nil
	}
	v, is := s.file.values[key]
	if !is || v.text == "" {
		return nil
	}
	if err := setFlag(f, v.text); err != nil {
		return usagef("%s:%d: %s: %w", s.file.name, v.line, key, err)
	}
	return nil
}

// setFlag sets a flag, and says what it wants where that fails.
func setFlag(f *pflag.Flag, text string) error {
	err := f.Value.Set(text)
	if err == nil {
		return nil
	}
	switch f.Value.Type() {
	case "int":
		return fmt.Errorf("%.64q: want a whole number", text)
	case "bool":
		return fmt.Errorf("%.64q: want true or false", text)
	}
	return fmt.Errorf("%.64q: %w", text, err)
}

// unknownKey refuses a file with a key that is none, the first of several.
func (s *serveCommand) unknownKey(c *cobra.Command) error {
	known := map[string]bool{}
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if isSetting(f) {
			known[strings.ReplaceAll(f.Name, "-", "_")] = true
		}
	})
	first, line := "", 0
	for key, v := range s.file.values {
		if !known[key] && (first == "" || v.line < line) {
			first, line = key, v.line
		}
	}
	switch {
	case first == "":
		return nil
	case known[strings.ReplaceAll(first, "-", "_")]:
		return usagef("%s:%d: there is no %q: write %s", s.file.name, line, first, strings.ReplaceAll(first, "-", "_"))
	case first == "bearer":
		return usagef("%s:%d: bearer: put the token into a file of its own, and name it in bearer_file", s.file.name, line)
	}
	return usagef("%s:%d: there is no setting %.64q: see %s --help", s.file.name, line, first, c.CommandPath())
}

// named is optional, and looks into the file too.
func (s *serveCommand) named(f serverFlag) (*server, error) {
	if f.given() || s.getenv(f.env) != "" || s.file == nil {
		return s.optional(f)
	}
	v := s.file.values[f.role]
	if strings.TrimSpace(v.text) == "" {
		return nil, nil
	}
	from := fmt.Sprintf("%s:%d", s.file.name, v.line)
	config, err := replication.ParseDSN(v.text)
	if err != nil {
		return nil, usagef("%s: %s: %w", from, f.role, err)
	}
	return &server{role: f.role, from: from, config: config, address: address(config)}, nil
}
