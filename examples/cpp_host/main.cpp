// Runs a model with lumina::OpticalLinear nodes in ONNX Runtime, from C++.
//
//     ./cpp_host liblumina_ort.so model.onnx [runs [input]]
//
// The one line that brings the operator is the call of RegisterCustomOpsLibrary. The model's input and its first
// output are float32. `input` is a file of the input's values, in the machine's own float32 format; a dimension that
// the model leaves open follows from the number of values. Without a file, open dimensions are 2 and element i is
// (i mod 7 - 3) / 4. Each run prints its output on a line; with noise on they differ from run to run, and repeat in a
// fresh process. Exits with status 1 after an error, with 2 if it was called wrongly.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace {

using Shape = std::vector<int64_t>;

void check_float(ONNXTensorElementDataType type, const std::string &what) {
    if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
        throw std::runtime_error("the " + what + " of the model is not float32");
    }
}

// The input's dimensions, -1 where the model leaves one open.
Shape input_shape(const Ort::Session &session) {
    const Ort::TypeInfo type = session.GetInputTypeInfo(0);
    if (type.GetONNXType() != ONNX_TYPE_TENSOR) throw std::runtime_error("the input of the model is not a tensor");
    const auto info = type.GetTensorTypeAndShapeInfo();
    check_float(info.GetElementType(), "input");
    return info.GetShape();
}

std::vector<float> made_up_input(Shape &shape) {
    std::replace_if(shape.begin(), shape.end(), [](int64_t size) { return size < 0; }, 2);
    const auto count = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
    std::vector<float> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); i++) values[i] = (static_cast<int>(i % 7) - 3) / 4.0f;
    return values;
}

std::vector<float> input_from_file(const std::string &path, Shape &shape) {
    const auto size = std::filesystem::file_size(path);
    if (size % sizeof(float) != 0) {
        throw std::runtime_error(path + " has " + std::to_string(size) + " bytes, and a float32 value has 4");
    }
    std::vector<float> values(size / sizeof(float));
    std::ifstream file(path, std::ios::binary);
    if (!file.read(reinterpret_cast<char *>(values.data()), static_cast<std::streamsize>(size))) {
        throw std::runtime_error(path + " cannot be read");
    }

    int64_t known = 1;
    int64_t *open = nullptr;
    for (int64_t &size : shape) {
        if (size >= 0) {
            known *= size;
        } else if (open == nullptr) {
            open = &size;
        } else {
            throw std::runtime_error(path + ": the model leaves several dimensions of its input open");
        }
    }
    const auto count = static_cast<int64_t>(values.size());
    const auto has = path + " has " + std::to_string(count) + " values, and the model takes ";
    if (open == nullptr && count != known) throw std::runtime_error(has + std::to_string(known));
    if (open != nullptr) {
        if (count == 0 || known == 0 || count % known != 0) {
            throw std::runtime_error(has + "a multiple of " + std::to_string(known));
        }
        *open = count / known;
    }
    return values;
}

void print(const Ort::Value &value) {
    if (!value.IsTensor()) throw std::runtime_error("the output of the model is not a tensor");
    const auto info = value.GetTensorTypeAndShapeInfo();
    check_float(info.GetElementType(), "output");
    const auto *data = value.GetTensorData<float>();
    for (size_t i = 0; i < info.GetElementCount(); i++) std::printf("%s%.9g", i > 0 ? " " : "", data[i]);
    std::printf("\n");
}

void run(const std::string &library, const std::string &model, int runs, const char *input_file) {
    const OrtApiBase *base = OrtGetApiBase();
    if (base->GetApi(ORT_API_VERSION) == nullptr) {
        throw std::runtime_error(std::string("ONNX Runtime ") + base->GetVersionString() + " is too old: 1." +
                                 std::to_string(ORT_API_VERSION) + " or newer");
    }
    std::fprintf(stderr, "ONNX Runtime %s\n", base->GetVersionString());

    const Ort::Env env(ORT_LOGGING_LEVEL_FATAL, "cpp_host");
    Ort::SessionOptions options;
    options.RegisterCustomOpsLibrary(library.c_str());
    Ort::Session session(env, model.c_str(), options);

    const Ort::AllocatorWithDefaultOptions allocator;
    const auto input_name = session.GetInputNameAllocated(0, allocator);
    const auto output_name = session.GetOutputNameAllocated(0, allocator);
    const char *const input_names[] = {input_name.get()};
    const char *const output_names[] = {output_name.get()};

    Shape shape = input_shape(session);
    auto values = input_file != nullptr ? input_from_file(input_file, shape) : made_up_input(shape);
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const auto input =
        Ort::Value::CreateTensor<float>(memory, values.data(), values.size(), shape.data(), shape.size());
    for (int i = 0; i < runs; i++) {
        const auto outputs = session.Run(Ort::RunOptions{nullptr}, input_names, &input, 1, output_names, 1);
        print(outputs.front());
    }
}

}  // namespace

int main(int argc, char **argv) {
    int runs = 1;
    bool called_rightly = argc >= 3 && argc <= 5;
    if (called_rightly && argc > 3) {
        const std::string_view text = argv[3];
        const auto parsed = std::from_chars(text.data(), text.data() + text.size(), runs);
        called_rightly = parsed.ec == std::errc() && parsed.ptr == text.data() + text.size() && runs >= 1;
    }
    if (!called_rightly) {
        std::fprintf(stderr, "usage: %s liblumina_ort.so model.onnx [runs, 1 or more [input]]\n", argv[0]);
        return 2;
    }
    try {
        run(argv[1], argv[2], runs, argc > 4 ? argv[4] : nullptr);
    } catch (const std::exception &error) {  // Ort::Exception is one
        std::fprintf(stderr, "cpp_host: %s\n", error.what());
        return 1;
    }
}
