package store

import (
	"context"
	"encoding/json"
	"fmt"

	"dray/internal/durable"
)

// factRecord is ROOT/facts/NAME.json.
type factRecord struct {
	Boot string          `json:"boot"` // in which it was found out
	Fact json.RawMessage `json:"fact"`
}

// Recall decodes what [Store.Remember] has written under name since the machine
// was started, and tells whether there was such a thing.
func (s *Store) Recall(name string, into any) bool {
	var r factRecord
	if err := readRecord(s.path(dirFacts, name+".json"), &r); err != nil || r.Boot != s.boot {
		return false
	}
	return json.Unmarshal(r.Fact, into) == nil
}

// Remember writes down what was found out about the machine and holds until it is
// started again. It may be lost at any time.
func (s *Store) Remember(ctx context.Context, name string, fact any) error {
	raw, err := json.Marshal(fact)
	if err != nil {
		return fmt.Errorf("remember %s: %w", name, err)
	}
	lock, err := s.lock(ctx, durable.Shared)
	if err != nil {
		return fmt.Errorf("remember %s: %w", name, err)
	}
	defer func() { _ = lock.Release() }()
	if err := writeRecord(s.path(dirFacts, name+".json"), factRecord{Boot: s.boot, Fact: raw}, unsynced); err != nil {
		return fmt.Errorf("remember %s: %w", name, s.Explain(err))
	}
	return nil
}
