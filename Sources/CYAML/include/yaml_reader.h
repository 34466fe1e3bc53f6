// libyaml's parser (Debian: libyaml-dev), one event at a time, without its unions.
#ifndef MARTLET_YAML_READER_H
#define MARTLET_YAML_READER_H

#include <stddef.h>
#include <stdint.h>

enum yaml_item {
    YAML_ITEM_ERROR,
    YAML_ITEM_DOCUMENT,
    YAML_ITEM_END,
    /// Text whose type is to be guessed from what it looks like.
    YAML_ITEM_PLAIN,
    /// Quoted text, or text with the tag !!str.
    YAML_ITEM_TEXT,
    YAML_ITEM_SEQUENCE,
    YAML_ITEM_SEQUENCE_END,
    YAML_ITEM_MAPPING,
    YAML_ITEM_MAPPING_END,
    /// An alias, or an anchor for one.
    YAML_ITEM_ALIAS,
    /// Something with a tag of another kind.
    YAML_ITEM_TAGGED,
};

struct yaml_reader;

/// The bytes have to stay until the reader is closed. Null where there is no memory.
struct yaml_reader *_Nullable yaml_reader_open(const uint8_t *_Nonnull bytes, size_t count);
void yaml_reader_close(struct yaml_reader *_Nonnull reader);
enum yaml_item yaml_reader_next(struct yaml_reader *_Nonnull reader);
/// Of the last item, from 1.
size_t yaml_reader_line(const struct yaml_reader *_Nonnull reader);
/// The last item's text, or what is wrong; valid until the next call.
const uint8_t *_Nullable yaml_reader_text(const struct yaml_reader *_Nonnull reader, size_t *_Nonnull count);

#endif
