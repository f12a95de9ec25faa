package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// settings are the values that did not come from the command line, and where
// each came from. Every flag is a key: a global one at the top of the file and
// as DRAY_NAME, one of a command in the command's table and as
// DRAY_COMMAND_NAME. The command line wins over the environment, the environment
// over the file.
type settings struct {
	file    string
	values  map[string]any
	from    map[string]string // flag's key → source
	foreign bool              // file is a predecessor's; serve reads it
}

// noSetting are flags that make no sense as a setting.
func noSetting(f *pflag.Flag) bool {
	return f.Name == "help" || f.Name == "config" || f.Name == "version"
}

// load fills in every flag of cmd that the command line left alone.
func (s *settings) load(a *App, cmd *cobra.Command) error {
	s.from = map[string]string{}
	if err := s.read(a, cmd); err != nil {
		return err
	}
	if err := s.checkKeys(cmd.Root()); err != nil {
		return err
	}
	var problems []error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !noSetting(f) {
			problems = append(problems, s.fill(cmd, f))
		}
	})
	return errors.Join(problems...)
}

// read finds and decodes the settings file.
func (s *settings) read(a *App, cmd *cobra.Command) error {
	path := a.Globals.Config
	if path == "" {
		path = os.Getenv("DRAY_CONFIG")
	}
	if path == "" {
		for _, candidate := range usualFiles() {
			if _, err := os.Stat(candidate); err == nil {
				path = candidate
				break
			}
		}
		if path == "" {
			return nil
		}
	}
	s.file = path
	raw, err := os.ReadFile(path) //nolint:gosec // the user names it
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	err = toml.Unmarshal(raw, &s.values)
	if cmd.Name() == "serve" && (foreign(s.values) || filepath.Ext(path) == ".json") {
		s.values, s.foreign = nil, true
		return nil
	}
	if err != nil {
		return fmt.Errorf("read settings %s: %w", path, err)
	}
	return nil
}

// foreign tells whether a file has the sections of imagepuller's or the
// Confidential Data Hub's configuration, none of which is a command of ours.
func foreign(values map[string]any) bool {
	for _, section := range []string{"registries", "extra-env", "image", "kbc", "aa", "credentials", "socket"} {
		if _, ok := values[section]; ok {
			return true
		}
	}
	return false
}

func usualFiles() []string {
	files := []string{"/etc/dray/config.toml"}
	if dir, err := os.UserConfigDir(); err == nil {
		files = slices.Insert(files, 0, filepath.Join(dir, "dray", "config.toml"))
	}
	return files
}

// checkKeys refuses keys that are no flag, naming them.
func (s *settings) checkKeys(root *cobra.Command) error {
	for name, value := range s.values {
		table, isTable := value.(map[string]any)
		if !isTable {
			if f := root.PersistentFlags().Lookup(name); f == nil || noSetting(f) {
				return fmt.Errorf("read settings %s: unknown key %q", s.file, name)
			}
			continue
		}
		command, _, err := root.Find(strings.Split(name, "-"))
		if err != nil || command == root {
			return fmt.Errorf("read settings %s: unknown table [%s]: want a command's name", s.file, name)
		}
		for key := range table {
			if command.LocalNonPersistentFlags().Lookup(key) == nil {
				return fmt.Errorf("read settings %s: unknown key %q in [%s]", s.file, key, name)
			}
		}
	}
	return nil
}

// fill sets one flag from the environment or the file.
func (s *settings) fill(cmd *cobra.Command, f *pflag.Flag) error {
	key, table := f.Name, ""
	if cmd.Root().PersistentFlags().Lookup(f.Name) == nil {
		table = strings.ReplaceAll(strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" "), " ", "-")
		key = table + "." + f.Name
	}
	if f.Changed {
		s.from[key] = "command line"
		return nil
	}
	variable := "DRAY_" + strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(key))
	if value, ok := os.LookupEnv(variable); ok {
		s.from[key] = variable
		return set(f, variable, strings.Split(value, ","), value)
	}
	values := s.values
	if table != "" {
		values, _ = s.values[table].(map[string]any)
	}
	value, ok := values[f.Name]
	if !ok {
		s.from[key] = "default"
		return nil
	}
	s.from[key] = s.file
	if list, isList := value.([]any); isList {
		parts := make([]string, len(list))
		for i := range list {
			parts[i] = fmt.Sprint(list[i])
		}
		return set(f, s.file, parts, strings.Join(parts, ","))
	}
	return set(f, s.file, []string{fmt.Sprint(value)}, fmt.Sprint(value))
}

func set(f *pflag.Flag, source string, list []string, value string) error {
	var err error
	if slice, ok := f.Value.(pflag.SliceValue); ok {
		err = slice.Replace(list)
	} else {
		err = f.Value.Set(value)
	}
	if err != nil {
		return fmt.Errorf("%s: %s: %w", source, f.Name, err)
	}
	return nil
}

// ConfigCommand returns the command that prints the settings in force.
func (a *App) ConfigCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "config",
		Short: "Print the settings in force and where each comes from",
		Long: `Prints every setting with its value and its source: the command line, a
DRAY_ variable, the settings file, or the default.

Global flags are keys at the top of the file (storepath = "/data/dray"), those of
a command keys of its table ([run] runtime = "crun"). Files are looked for at
--config, $DRAY_CONFIG, $XDG_CONFIG_HOME/dray/config.toml and
/etc/dray/config.toml; the first that exists is read, alone.` + ExitCodes(),
		Example: a.Example("config --json"),
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.printSettings(cmd.Root()) },
	}
}

// setting is one line of the config command.
type setting struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Source string `json:"source"`
}

func (a *App) printSettings(root *cobra.Command) error {
	var lines []setting
	var problems []error
	add := func(cmd *cobra.Command, flags *pflag.FlagSet, table string) {
		flags.VisitAll(func(f *pflag.Flag) {
			if noSetting(f) || f.Hidden {
				return
			}
			key := f.Name
			if table != "" {
				key = table + "." + f.Name
				problems = append(problems, a.settings.fill(cmd, f))
			}
			lines = append(lines, setting{key, f.Value.String(), a.settings.from[key]})
		})
	}
	add(root, root.PersistentFlags(), "")
	var walk func(c *cobra.Command, table string)
	walk = func(c *cobra.Command, table string) {
		for _, sub := range c.Commands() {
			if sub.Hidden || sub.Name() == "help" || sub.Name() == "completion" {
				continue
			}
			name := strings.TrimPrefix(table+"-"+sub.Name(), "-")
			add(sub, sub.LocalNonPersistentFlags(), name)
			walk(sub, name)
		}
	}
	walk(root, "")
	if err := errors.Join(problems...); err != nil {
		return usageError{err}
	}
	if a.Globals.JSON {
		for _, l := range lines {
			if err := a.PrintJSON(l); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(a.Stdout, 0, 0, 2, ' ', 0)
	for _, l := range lines {
		_, _ = fmt.Fprintf(w, "%s\t%s\t(%s)\n", l.Key, l.Value, l.Source)
	}
	return w.Flush()
}

// PrintJSON writes one result as one line of JSON.
func (a *App) PrintJSON(v any) error {
	encoder := json.NewEncoder(a.Stdout)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}
