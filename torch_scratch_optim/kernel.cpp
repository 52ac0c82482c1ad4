// A rule over many tensors, on the threads of a CPU. What the rule writes stands above this text:
// COLUMNS(X), a line X(index, type, written) for each tensor of a row; NUMBERS, how many numbers
// the rule is given; and update(element of each column…, numbers), the rule itself.

// The runtime of threads that torch has loaded, whichever it is. Without one there is one thread.
extern "C" {
void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned flags) __attribute__((weak));
int omp_get_thread_num() __attribute__((weak));
int omp_get_num_threads() __attribute__((weak));
}

const int64_t GRAIN = 1 << 15;  // elements for which it pays to take another thread, as in torch's own kernels

struct Rows {
  int64_t count;
  const int64_t* sizes;        // the elements of each row
  const int64_t* pointers;     // column after column, the address of each row
  const double* numbers;       // of the first row
  int64_t stride;              // from one row's numbers to the next's: 0 if all have the same
  float* const* steps;         // of each row, if they are to be counted
  int64_t total;               // elements
};

static void move(const Rows& rows, int64_t row, int64_t begin, int64_t end) {
  double numbers[NUMBERS + 1];  // a copy, which no column overlaps
  for (int k = 0; k < NUMBERS; ++k) numbers[k] = rows.numbers[row * rows.stride + k];
#define ELEMENT(index, type, written) c##index,
#define POINTER(index, type, written) \
  type* __restrict column##index = (type*)rows.pointers[index * rows.count + row];
#define LOAD(index, type, written) auto c##index = load(column##index[i]);
#define STORE(index, type, written) \
  if (written) column##index[i] = to_##type(c##index);
  COLUMNS(POINTER)
  for (int64_t i = begin; i < end; ++i) {
    COLUMNS(LOAD)
    update(COLUMNS(ELEMENT) numbers);
    COLUMNS(STORE)
  }
}

// Elements begin … end of all rows, one row after another.
static void move_all(const Rows& rows, int64_t begin, int64_t end) {
  int64_t start = 0;
  for (int64_t row = 0; row < rows.count && start < end; ++row) {
    const int64_t size = rows.sizes[row];
    if (start + size > begin) move(rows, row, std::max(begin - start, int64_t(0)), std::min(end - start, size));
    start += size;
  }
}

// One thread's share of the elements, cut at whole cache lines.
static void share(void* data) {
  const Rows& rows = *(const Rows*)data;
  const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
  const int64_t begin = rows.total * thread / threads / 64 * 64;
  const int64_t end = thread + 1 == threads ? rows.total : rows.total * (thread + 1) / threads / 64 * 64;
  move_all(rows, begin, end);
}

// Whether memory that is written belongs to something else, too.
static bool overlap(const Rows& rows) {
  struct Piece { int64_t begin, end; bool written; };
  std::vector<Piece> pieces;
  pieces.reserve(rows.count * (COLUMN_COUNT + 1));
  for (int64_t row = 0; rows.steps && row < rows.count; ++row)
    pieces.push_back({int64_t(rows.steps[row]), int64_t(rows.steps[row] + 1), true});
#define PIECES(index, type, written) \
  for (int64_t row = 0; row < rows.count; ++row) { \
    const int64_t begin = rows.pointers[index * rows.count + row]; \
    pieces.push_back({begin, begin + rows.sizes[row] * int64_t(sizeof(type)), bool(written)}); \
  }
  COLUMNS(PIECES)
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.begin < b.begin; });
  int64_t any = 0, written = 0;  // where what came before ends
  for (const Piece& piece : pieces) {
    if (piece.begin == piece.end) continue;
    if (piece.begin < written || (piece.written && piece.begin < any)) return true;
    any = std::max(any, piece.end);
    if (piece.written) written = std::max(written, piece.end);
  }
  return false;
}

// Moves all rows, or none: if memory overlaps or is missing, or a number is beyond float.
extern "C" int run(int64_t count, const int64_t* sizes, const int64_t* pointers, const double* numbers,
                   int64_t stride, float* const* steps, int threads) {
  Rows rows = {count, sizes, pointers, numbers, stride, steps, 0};
  for (int64_t row = 0; row < count; ++row) rows.total += sizes[row];
  for (int64_t row = 0; row < count; ++row)
    for (int column = 0; column < COLUMN_COUNT; ++column)
      if (sizes[row] && !pointers[column * count + row]) return 1;
  for (int64_t k = 0; k < (stride ? count * stride : NUMBERS); ++k)
    if (fabs(numbers[k]) > 3.4028234663852886e38 && !isinf(numbers[k])) return 1;
  if (overlap(rows)) return 1;
  threads = std::min(int64_t(threads), (rows.total + GRAIN - 1) / GRAIN);
  if (threads > 1 && GOMP_parallel && omp_get_thread_num && omp_get_num_threads)
    GOMP_parallel(share, &rows, threads, 0);
  else
    move_all(rows, 0, rows.total);
  for (int64_t row = 0; steps && row < count; ++row) *steps[row] += 1;
  return 0;
}

// The step that all rows are about to take, or NaN if they differ.
extern "C" double peek(int64_t count, const float* const* steps) {
  for (int64_t row = 0; row < count; ++row)
    if (*steps[row] != *steps[0]) return NAN;
  return *steps[0] + 1;
}

extern "C" int has_fma() {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return 1;
#else
  return 0;
#endif
}
